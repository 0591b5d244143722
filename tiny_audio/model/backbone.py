"""Finds the files of a frozen backbone, checks them, and loads its module. Weights are read from safetensors alone.

`encoder.py` and `decoder.py` say what a checkpoint of each must be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from tiny_audio.config import ConfigError, embedded_backbone, is_hub_id, one_line, require

SHOWN_KEYS = 5


def backbone_path(model_id: str) -> str:
    """Where a backbone is: the folder of an embedded one; a local folder or a hub id as it is."""
    return str(embedded_backbone(model_id) or model_id)


def read_config(model_id: str, architectures: dict[str, str]) -> PreTrainedConfig:
    """Reads the config of a checkpoint.

    Args:
        architectures: the names of those that will do, by their `model_type`.

    Raises:
        ConfigError: there is none, or it is of another architecture, or quantised.
    """
    path = backbone_path(model_id)
    if Path(path).is_dir():
        require((Path(path) / "config.json").is_file(), f"{model_id}: the folder has no config.json; is the download complete?")
    else:
        require(is_hub_id(model_id), f"{model_id}: no such folder, and no hub id (OWNER/NAME)")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, StrictDataclassError) as error:
        remedy = "" if Path(path).is_dir() else "not found on the hub, or no way to it; without a network, name a local folder: "
        raise ConfigError(f"{model_id}: {remedy}{one_line(error)}") from None
    *others, last = architectures.values()
    names = f"{', '.join(others)} or {last}" if others else last
    require(config.model_type in architectures, f"{model_id}: is a {config.model_type}, not a {names} checkpoint")
    is_quantised = getattr(config, "quantization_config", None) is not None
    require(not is_quantised, f"{model_id}: its weights are quantised; take the checkpoint that they were made from")
    return config


def require_weights(model_id: str) -> None:
    """Raises ConfigError unless a folder's weight files are there and whole. A hub id's are not looked at."""
    folder = Path(backbone_path(model_id))
    if not folder.is_dir():
        return
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = [folder / SAFE_WEIGHTS_NAME]
    if not files[0].is_file():
        remedy = "fetch it again; other formats are not read"
        require(index.is_file(), f"{folder}: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME} there; {remedy}")
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{index}: not an index of shards ({one_line(error)}); fetch it again") from None
    for path in files:
        require(path.is_file(), f"{path}: {index.name} names this shard, and it is not there; fetch it again")
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ConfigError(f"{path}: not a safetensors file, or a truncated one ({one_line(error)}); fetch it again") from None


def load_module(model_class, model_id: str, dtype: torch.dtype, attn_implementation: str, **kwargs) -> nn.Module:
    """Calls `from_pretrained` without its report on the parts of a checkpoint that we leave out.

    By itself it would leave missing weights random with a warning, and fall back to formats that can run code.
    """
    require_weights(model_id)
    try:
        with quiet_transformers():
            model, info = model_class.from_pretrained(
                backbone_path(model_id),
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # listed in `info` then, and refused below
                **kwargs,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{model_id}: {one_line(error)}") from None
    missing = sorted(info["missing_keys"])
    require(not missing, f"{model_id}: the checkpoint lacks {_shown(missing)}; is the download complete, and the right model?")
    reshaped = [f"{key} {tuple(shape)}, not {tuple(wanted)}" for key, shape, wanted in sorted(info["mismatched_keys"])]
    require(not reshaped, f"{model_id}: weights have other shapes than config.json says: {_shown(reshaped)}; use its own config")
    return model


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
    return ", ".join(names[:SHOWN_KEYS]) + more


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' warnings and progress bars quiet for as long as the context lasts."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
