"""Backbones of any size with random weights, in folders as the hub has them, for benchmarks at true shapes and for tests.

They load like real ones, take the same time and memory, and produce nonsense.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.config import BACKBONES, PACKAGE_ROOT
from tiny_audio.model.backbone import quiet_transformers
from tiny_audio.model.encoder import window_num_samples

PROMPT_PIECES = ["system", "user", "assistant", "Trans", "cribe", "<think>", "</think>", "\n\n"]

# The config.json of openai/whisper-large-v3-turbo where it differs from `WhisperConfig`'s defaults: 809 M parameters.
WHISPER_LARGE_V3_TURBO = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_layers": 4,
    "decoder_attention_heads": 20,
    "decoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "vocab_size": 51866,
    "bos_token_id": 50257,
    "eos_token_id": 50257,
    "pad_token_id": 50257,
    "decoder_start_token_id": 50258,
}
# Likewise HuggingFaceTB/SmolLM3-3B: 3.08 B parameters.
SMOLLM3_3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 11008,
    "vocab_size": 128256,
    "max_position_embeddings": 65536,
    "no_rope_layer_interval": 4,  # every fourth layer has no position encoding
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    "bos_token_id": 128000,
    "eos_token_id": 128012,
    "pad_token_id": 128004,
}


def _write_model(model_class: type[PreTrainedModel], config: PreTrainedConfig, folder: Path, device: str, max_shard_size: str):
    """Draws weights on `device` as a training initialises them: matrices with deviation 0.02, norms 1, biases 0."""
    with torch.device("meta"):  # the modules' own initial values would take long
        model = model_class(config)
    model.to(torch.bfloat16).to_empty(device=device).tie_weights()
    generator = torch.Generator(device).manual_seed(0)  # the same weights each time, on the same kind of device
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=0.02, generator=generator)
        else:
            weight.data.fill_(0.0 if name.endswith("bias") else 1.0)
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=max_shard_size)


def write_encoder(folder: str | Path, config: dict, device: str = "cpu", max_shard_size: str = "5GB") -> None:
    """Writes a whole Whisper checkpoint in bfloat16, with its decoder, and the feature extractor's file.

    Args:
        config: keys of `WhisperConfig`, such as `WHISPER_LARGE_V3_TURBO`; `max_source_positions` must be whole seconds.
        device: where the weights are drawn; both true shapes together take three minutes on two CPU cores.
    """
    whisper = WhisperConfig(**config)
    _write_model(WhisperForConditionalGeneration, whisper, Path(folder), device, max_shard_size)
    window_s = window_num_samples(whisper) // SAMPLE_RATE
    WhisperFeatureExtractor(feature_size=whisper.num_mel_bins, chunk_length=window_s).save_pretrained(folder)


def write_decoder(folder: str | Path, config: dict, device: str = "cpu", max_shard_size: str = "5GB") -> None:
    """Writes a SmolLM3 checkpoint in bfloat16, in shards of at most `max_shard_size` with an index.

    The tokenizer is the embedded backbone's with 1,024 pieces, whose ids exist in any larger vocabulary. If there is
    room, the words of the prompt become tokens, so that a prompt is as long as with SmolLM3's own tokenizer.

    Args:
        config: keys of `SmolLM3Config`, such as `SMOLLM3_3B`.
    """
    _write_model(SmolLM3ForCausalLM, SmolLM3Config(**config), Path(folder), device, max_shard_size)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE_ROOT / BACKBONES / "decoder")
    if len(tokenizer) + len(PROMPT_PIECES) < config["vocab_size"]:
        tokenizer.add_tokens(PROMPT_PIECES)
    tokenizer.save_pretrained(folder)


def write_random_backbones(
    folder: str | Path, encoder: dict = WHISPER_LARGE_V3_TURBO, decoder: dict = SMOLLM3_3B, device: str = "cpu"
) -> tuple[Path, Path]:
    """Writes both backbones; returns their folders, which `audio_model_id` and `text_model_id` take."""
    write_encoder(Path(folder) / "encoder", encoder, device)
    write_decoder(Path(folder) / "decoder", decoder, device)
    return Path(folder) / "encoder", Path(folder) / "decoder"
