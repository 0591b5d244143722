"""tiny_audio: speech recognisers from a frozen encoder, a frozen decoder and a small trained projector.

`ASRConfig` and `ASRModel` are imported when they are asked for: decode tasks need no torch.
"""


def __getattr__(name: str):
    if name == "ASRConfig":
        from tiny_audio.model.config import ASRConfig

        return ASRConfig
    if name == "ASRModel":
        from tiny_audio.model.asr import ASRModel

        return ASRModel
    raise AttributeError(f"module 'tiny_audio' has no attribute {name!r}")
