"""Loads the frozen backbones' modules with their weights, from a folder or the hub.

This is apart from `backbone.py` because transformers' models take 2 s and 150 MB to import, which drivers do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from tiny_audio.config import ConfigError, one_line, require
from tiny_audio.model.backbone import backbone_path, read_decoder_config, read_encoder_config, require_weights
from tiny_audio.transformers_names import whisper_encoder_class

SHOWN_KEYS = 5


def load_encoder(model_id: str, dtype: torch.dtype, attn_implementation: str) -> nn.Module:
    """Loads the encoder out of a whole Whisper checkpoint.

    Raises:
        ConfigError: there is none, or it lacks encoder weights, or has them in other shapes than its config.json says.
    """
    read_encoder_config(model_id)
    return _load(whisper_encoder_class(), model_id, dtype, attn_implementation, key_mapping={r"^(model\.)?encoder\.": ""})


def load_decoder(model_id: str, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """Loads the decoder, by transformers' class for its family.

    Raises:
        ConfigError: there is none, or it lacks weights, or has them in other shapes than its config.json says.
    """
    read_decoder_config(model_id)
    return _load(AutoModelForCausalLM, model_id, dtype, attn_implementation)


def _load(model_class, model_id: str, dtype: torch.dtype, attn_implementation: str, **kwargs) -> nn.Module:
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
