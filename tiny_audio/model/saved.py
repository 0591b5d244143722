"""A saved model's folder: config.json and the projector's weights. The backbones are in it by their ids alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from tiny_audio.config import ConfigError, one_line
from tiny_audio.model.backbone import read_window_s
from tiny_audio.model.config import ASRConfig
from tiny_audio.storage import local_folder
from tiny_audio.versions import require_version

ARCHITECTURE = "ASRModel"
PROJECTOR_FILE = "model.safetensors"
PROJECTOR_PREFIX = "projector."
MODEL_VERSION = 1  # of a saved model's format; config.json holds it


def save_projector(config: ASRConfig, weights: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Writes a saved model: config.json, and the projector's `weights` in float32."""
    config.architectures, config.format_version = [ARCHITECTURE], MODEL_VERSION
    config.save_pretrained(folder)
    state = {PROJECTOR_PREFIX + name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    save_file(state, Path(folder) / PROJECTOR_FILE, metadata={"format": "pt"})


def load_projector(model: str) -> dict[str, torch.Tensor]:
    """What `save_projector` was given as `weights`, from a folder or a hub id."""
    state = load_file(cached_file(model, PROJECTOR_FILE))
    return {key.removeprefix(PROJECTOR_PREFIX): weight for key, weight in state.items()}


def require_readable(model: str, config: ASRConfig) -> None:
    """Checks that this code reads the format of a saved model.

    Raises:
        ConfigError: it is of another version.
    """
    require_version(f"{model}/config.json", config.format_version, MODEL_VERSION)


def read_model_window_s(model: str) -> float:
    """Longest audio that a saved model takes, in seconds, from the configs alone.

    Raises:
        ConfigError: there is no such model, it is of another version than this code reads, or its encoder is gone.
    """
    try:
        with local_folder(model) as folder:
            config = ASRConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model}: {one_line(error)}") from None
    require_readable(model, config)
    return read_window_s(config.audio_model_id)
