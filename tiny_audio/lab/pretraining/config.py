"""The settings of pre-training; it imports nothing that takes long."""

from __future__ import annotations

from pydantic import NonNegativeFloat, NonNegativeInt

from tiny_audio.config import AtLeastOne, Text, settings


@settings()
class PretrainConfig:
    """The sizes and lengths of the pre-training. The defaults made the backbones in this repository."""

    output_dir: Text = "tiny_audio/backbones"  # the folder for encoder/ and decoder/
    seed: NonNegativeInt = 0  # of the weights, the sentences and the voices
    device: Text = "cuda"  # where torch computes; a CPU (cpu) needs most of a day
    num_processes: AtLeastOne = 12  # processes that synthesise speech and write text
    num_utterances: AtLeastOne = 130_000  # clips that the encoder learns from
    encoder_steps: AtLeastOne = 8_500  # steps of the encoder's training
    encoder_batch: AtLeastOne = 192  # clips in each of its steps
    decoder_steps: AtLeastOne = 10_000  # steps of the decoder's training
    decoder_batch: AtLeastOne = 384  # texts in each of its steps
    learning_rate: NonNegativeFloat = 1.5e-3  # the highest, of both trainings
