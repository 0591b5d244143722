"""Loads the projectors of further models that share a model's backbones, so that one copy of those serves them all."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tiny_audio.config import require
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.projectors import frames_per_token, make_projector
from tiny_audio.model.saved import load_projector, load_saved_adapter, put_weights, require_readable
from tiny_audio.storage import local_folder

REMEDY = "models that are served together may differ in their projectors alone"


def _shared(config: ASRConfig) -> dict[str, str | int]:
    """Returns what must be alike in models that share their backbones and the engine: not the kind of projector."""
    names = ("audio_model_id", "text_model_id", "encoder_window", "max_new_tokens")
    return {name: getattr(config, name) for name in names} | {"frames_per_token": frames_per_token(config)}


def load_sibling(model: PreTrainedModel, source: str) -> nn.Module:
    """Loads the projector of the saved model at `source` (a folder, a URL or a hub id) onto the backbones of an `ASRModel`.

    Raises:
        ConfigError: it differs from that model in more than the projector, or one of them has a decoder of its own by LoRA.
        ValueError: its file holds no projector for these backbones.
    """
    require(model.adapter is None, f"the first model has LoRA merged into its decoder, so {source} cannot share it; {REMEDY}")
    with local_folder(source) as folder:
        config = ASRConfig.from_pretrained(folder)
        require_readable(source, config)
        state, adapter = load_projector(folder), load_saved_adapter(folder)
    require(adapter is None, f"{source}: its LoRA changes the decoder, which it would share; {REMEDY}")
    ours = _shared(model.config)
    for name, its in _shared(config).items():
        require(its == ours[name], f"{source}: its {name} is {its}, and that of the first model {ours[name]}; {REMEDY}")
    projector = make_projector(config, model.encoder.config.d_model, model.decoder.config.hidden_size)
    put_weights(projector, state, source, config)
    return projector.to(model.decoder.device).eval()
