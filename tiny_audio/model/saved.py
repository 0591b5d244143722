"""Saves and loads a model's folder: config.json and the projector's weights. Of the backbones it holds the ids alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from transformers.utils import cached_file

from tiny_audio.model.config import ASRConfig
from tiny_audio.versions import require_version

ARCHITECTURE = "ASRModel"
PROJECTOR_FILE = "model.safetensors"
PROJECTOR_PREFIX = "projector."
MODEL_VERSION = 1  # of a saved model's format; config.json holds it
# Which files of a hub id, and how they are fetched; transformers documents them at `PreTrainedModel.from_pretrained`.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def save_projector(config: ASRConfig, weights: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Writes a saved model: config.json, and the projector's `weights` in float32."""
    config.architectures, config.format_version = [ARCHITECTURE], MODEL_VERSION
    config.save_pretrained(folder)
    state = {PROJECTOR_PREFIX + name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    # Written by us, with the rights that new files get here: safetensors' own files are for their owner alone.
    (Path(folder) / PROJECTOR_FILE).write_bytes(save(state, metadata={"format": "pt"}))


def load_projector(model: str, **hub_options) -> dict[str, torch.Tensor]:
    """Returns what `save_projector` was given as `weights`, from a folder or a hub id.

    Args:
        model: the folder or hub id.
        **hub_options: of HUB_OPTIONS.
    """
    state = load_file(cached_file(model, PROJECTOR_FILE, **hub_options))
    return {key.removeprefix(PROJECTOR_PREFIX): weight for key, weight in state.items()}


def require_readable(model: str, config: ASRConfig) -> None:
    """Checks that this code reads the format of a saved model.

    Raises:
        ConfigError: it is of another version.
    """
    require_version(f"{model}/config.json", config.format_version, MODEL_VERSION)


def one_device(device_map) -> torch.device:
    """Returns the device that a `device_map` of transformers names.

    Raises:
        ValueError: it names several, or none.
    """
    device = device_map[""] if isinstance(device_map, dict) and set(device_map) == {""} else device_map
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device_map must name one device (auto, cpu, cuda, cuda:1), not {device_map!r}") from None
