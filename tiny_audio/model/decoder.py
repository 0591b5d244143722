"""The frozen decoder: which families there are, and what a checkpoint of one must be, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from tiny_audio.config import ConfigError, one_line, require
from tiny_audio.model.backbone import backbone_path, load_module, read_config, require_weights
from tiny_audio.model.decoders.llama import LLAMA
from tiny_audio.model.decoders.qwen2 import QWEN2
from tiny_audio.model.decoders.qwen3 import QWEN3
from tiny_audio.model.decoders.smollm3 import SMOLLM3
from tiny_audio.model.prompt import AUDIO_TOKEN, build_prompt

FAMILIES = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3, SMOLLM3)}
# Where a tokenizer's pieces may be. Without any of them transformers makes some kinds of tokenizers empty, and says nothing.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(model_id: str):
    """Loads the decoder's tokenizer, with the `<audio>` placeholder known to it as one token.

    Raises:
        ConfigError: it is not there, or lacks a chat template.
    """
    folder = Path(backbone_path(model_id))
    has_tokens = not folder.is_dir() or any((folder / name).is_file() for name in TOKENIZER_FILES)
    require(has_tokens, f"{model_id}: its tokenizer cannot be read; fetch it again ({' or '.join(TOKENIZER_FILES)} is missing)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(model_id))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model_id}: its tokenizer cannot be read; fetch it again ({one_line(error)})") from None
    remedy = "take the instruction-tuned checkpoint, such as HuggingFaceTB/SmolLM3-3B"
    require(bool(tokenizer.chat_template), f"{model_id}: the tokenizer has no chat template (chat_template.jinja); {remedy}")
    tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


def read_decoder_config(model_id: str) -> PreTrainedConfig:
    """Reads the config of a decoder.

    Raises:
        ConfigError: there is none, or it is of no known family, or asks for what `layers.py` does not compute.
    """
    config = read_config(model_id, {family.model_type: family.name for family in FAMILIES.values()})
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    require(not sliding, f"{model_id}: attends within a sliding window, which is not computed here; take another checkpoint")
    require(config.hidden_act == "silu", f"{model_id}: computes with {config.hidden_act}, and only silu is computed here")
    return config


def require_decoder(model_id: str) -> None:
    """Raises ConfigError unless there is a decoder of that id, of a known family, with a tokenizer and chat template for it.

    In a folder, one with all its files, whole.
    """
    config = read_decoder_config(model_id)
    tokenizer = load_tokenizer(model_id)
    try:
        build_prompt(tokenizer, FAMILIES[config.model_type].system_prompt)
    except (ValueError, TemplateError) as error:
        raise ConfigError(f"{model_id}: its chat template cannot be used: {one_line(error)}") from None
    last = max(number for token, number in tokenizer.get_vocab().items() if token != AUDIO_TOKEN)
    remedy = "take the checkpoint's own tokenizer"
    require(last < config.vocab_size, f"{model_id}: the tokenizer has ids to {last}, the model {config.vocab_size}; {remedy}")
    require_weights(model_id)


def load_decoder(model_id: str, dtype: torch.dtype, attn_implementation: str) -> nn.Module:
    """Loads the decoder, by transformers' class for its family.

    Raises:
        ConfigError: there is none, or it lacks weights, or has them in other shapes than its config.json says.
    """
    read_decoder_config(model_id)
    return load_module(AutoModelForCausalLM, model_id, dtype, attn_implementation)
