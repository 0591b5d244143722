"""The two frozen backbones: where their files are, and how they are loaded. Nothing here knows of Ray or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, SmolLM3ForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

from tiny_audio.config import ConfigError, require
from tiny_audio.decode import SAMPLE_RATE
from tiny_audio.features import SAMPLES_PER_ENCODER_FRAME
from tiny_audio.text import AUDIO_TOKEN, PAD_TOKEN

PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def backbone_path(model_id: str) -> str:
    """Where a backbone is: a local folder, a folder of this repository (the embedded ones), or a hub id as it is."""
    if not Path(model_id).is_dir() and (PACKAGE_ROOT / model_id).is_dir():
        return str(PACKAGE_ROOT / model_id)
    return model_id


def load_encoder(model_id: str, dtype: torch.dtype, attn_implementation: str) -> nn.Module:
    """The encoder of a whole Whisper checkpoint.

    Raises:
        ValueError: encoder weights are missing there. (transformers only warns, and leaves them random.)
    """
    return _load(WhisperEncoder, model_id, dtype, attn_implementation, key_mapping={r"^(model\.)?encoder\.": ""})


def load_decoder(model_id: str, dtype: torch.dtype, attn_implementation: str) -> SmolLM3ForCausalLM:
    """The decoder.

    Raises:
        ValueError: weights are missing in the checkpoint.
    """
    return _load(SmolLM3ForCausalLM, model_id, dtype, attn_implementation)


def load_tokenizer(model_id: str):
    """The decoder's tokenizer, with the `<audio>` placeholder known to it as one token."""
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(model_id))
    tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]}, replace_extra_special_tokens=False)
    tokenizer.pad_token = PAD_TOKEN
    return tokenizer


def _load(model_class, model_id: str, dtype: torch.dtype, attn_implementation: str, **kwargs) -> nn.Module:
    """`from_pretrained`, without its report on the parts of a checkpoint that we leave out, but with ours on missing ones."""
    with quiet_transformers():
        model, info = model_class.from_pretrained(
            backbone_path(model_id), dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True, **kwargs
        )
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(f"{model_id}: the checkpoint lacks {shown}; is the download complete, and the right model?")
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_window_s(model_id: str) -> float:
    """Longest audio that a Whisper checkpoint takes, in seconds (30), from its config alone.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    config = _read_config(model_id)
    require(hasattr(config, "max_source_positions"), f"{model_id}: is a {config.model_type}, not a Whisper checkpoint")
    return config.max_source_positions * SAMPLES_PER_ENCODER_FRAME / SAMPLE_RATE


def require_decoder(model_id: str) -> None:
    """Raises ConfigError unless there is a SmolLM3 checkpoint of that id."""
    config = _read_config(model_id)
    require(config.model_type == "smollm3", f"{model_id}: is a {config.model_type}, not a SmolLM3 checkpoint")


def _read_config(model_id: str):
    try:
        return AutoConfig.from_pretrained(backbone_path(model_id))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model_id}: {str(error).splitlines()[0]}") from None
