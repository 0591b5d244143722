"""Settings of the pre-training of the embedded backbones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PretrainConfig:
    """Sizes and lengths of the pre-training; the defaults made the backbones in this repository."""

    output_dir: str = "tiny_audio/backbones"
    seed: int = 0
    device: str = "cuda"
    num_processes: int = 12  # that synthesise and write text
    num_utterances: int = 130_000
    encoder_steps: int = 8_500
    encoder_batch: int = 192
    decoder_steps: int = 10_000
    decoder_batch: int = 384
    learning_rate: float = 1.5e-3
