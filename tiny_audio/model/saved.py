"""Saves and loads a model's folder: config.json, projector, adapter and CTC head. Of the backbones it holds the ids alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from transformers.utils import cached_file, find_adapter_config_file

from tiny_audio.model.config import ASRConfig
from tiny_audio.model.ctc_head import save_ctc_head
from tiny_audio.model.lora import ADAPTER_FOLDER, ADAPTER_WEIGHTS, TRAINED_PREFIX, Adapter, load_adapter, save_adapter
from tiny_audio.storage import local_folder
from tiny_audio.versions import require_version

ARCHITECTURE = "ASRModel"
PROJECTOR_FILE = "model.safetensors"
PROJECTOR_PREFIX = "projector."
MODEL_VERSION = 2  # of a saved model's format, which config.json holds: 2 has an adapter beside the projector, 1 has none
# Which files of a hub id, and how they are fetched; transformers documents them at `PreTrainedModel.from_pretrained`.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def save_model(
    config: ASRConfig,
    weights: dict[str, torch.Tensor],
    adapter: Adapter | None,
    folder: str | Path,
    ctc_head: torch.nn.Linear | None = None,
) -> None:
    """Writes a saved model: config.json, the projector's `weights` in float32, and the adapter and the head if there are any."""
    config.architectures, config.format_version = [ARCHITECTURE], MODEL_VERSION if adapter else 1
    config.save_pretrained(folder)
    if adapter:
        save_adapter(adapter, config.text_model_id, Path(folder) / ADAPTER_FOLDER)
    state = {PROJECTOR_PREFIX + name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    # Written by us, with the rights that new files get here: safetensors' own files are for their owner alone.
    (Path(folder) / PROJECTOR_FILE).write_bytes(save(state, metadata={"format": "pt"}))
    if ctc_head:
        save_ctc_head(ctc_head, folder)


def load_projector(model: str, **hub_options) -> dict[str, torch.Tensor]:
    """Returns what `save_model` was given as `weights`, from a folder or a hub id.

    Args:
        model: the folder or hub id.
        **hub_options: of HUB_OPTIONS.
    """
    state = load_file(cached_file(model, PROJECTOR_FILE, **hub_options))
    return {key.removeprefix(PROJECTOR_PREFIX): weight for key, weight in state.items()}


def load_saved_adapter(model: str, **hub_options) -> Adapter | None:
    """Reads the adapter of a saved model, if it has one; the arguments are those of `load_projector`."""
    within = {**hub_options, "subfolder": "/".join(filter(None, (hub_options.get("subfolder"), ADAPTER_FOLDER)))}
    config_file = find_adapter_config_file(model, **within)
    return load_adapter(config_file, cached_file(model, ADAPTER_WEIGHTS, **within)) if config_file else None


def load_trained(model: str) -> dict[str, torch.Tensor]:
    """Returns all that was trained of a saved model, in a folder or at a URL, by the names of `ASRModel.trained_weights`."""
    with local_folder(model) as folder:
        projector, adapter = load_projector(folder), load_saved_adapter(folder)
    return projector | {f"{TRAINED_PREFIX}{name}": weight for name, weight in (adapter.weights if adapter else {}).items()}


def put_weights(projector: torch.nn.Module, weights: dict[str, torch.Tensor], model: str, config: ASRConfig) -> None:
    """Puts what `load_projector` returned of a saved model into a projector.

    Raises:
        ValueError: weights are missing, are there too many, or have other shapes.
    """
    shapes = [{name: weight.shape for name, weight in state.items()} for state in (projector.state_dict(), weights)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{model}: not a projector for {config.audio_model_id} and {config.text_model_id}")
    projector.load_state_dict(weights)


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
