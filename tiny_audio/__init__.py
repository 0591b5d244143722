"""tiny_audio: speech recognisers from a frozen encoder, a frozen decoder and a small trained projector.

Decode tasks import this package too, and must not pay for torch (2 s and 600 MB). So `ASRConfig`, `ASRModel` and
`transcribe` are imported when they are asked for, and transformers' `AutoConfig`, `AutoModel` and `pipeline` come to know
them as soon as these are imported themselves, whether before or after this package.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

from tiny_audio.transformers_names import REGISTRIES


class _Registration:
    """A finder on `sys.meta_path` that imports the module of ours right after the registry."""

    def __init__(self):
        self.awaited = dict(REGISTRIES)
        for registry in REGISTRIES.keys() & sys.modules.keys():
            import_module(self.awaited.pop(registry))

    def find_spec(self, fullname, path, target=None):
        ours = self.awaited.pop(fullname, None)
        if ours is None:
            return None
        spec = find_spec(fullname)  # by the other finders, for it is awaited no more
        run = spec.loader.exec_module

        def run_and_register(module):
            run(module)
            import_module(ours)

        spec.loader.exec_module = run_and_register
        return spec


if not any(isinstance(finder, _Registration) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Registration())


def __getattr__(name: str):
    if name == "ASRConfig":
        from tiny_audio.model.config import ASRConfig

        return ASRConfig
    if name == "ASRModel":
        from tiny_audio.model.asr import ASRModel

        return ASRModel
    if name == "transcribe":
        from tiny_audio.inference.local import transcribe

        return transcribe
    raise AttributeError(f"module 'tiny_audio' has no attribute {name!r}")
