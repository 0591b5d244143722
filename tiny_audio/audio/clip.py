"""Defines a clip of sound, its length in samples, encoder frames and tokens, and the rates that everything else uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
N_FFT = 400  # 25 ms, Whisper's window (Radford et al. 2022, 2.2)
HOP_SAMPLES = 160  # 10 ms
SAMPLES_PER_ENCODER_FRAME = 2 * HOP_SAMPLES  # Whisper's second convolution has stride 2
FRAMES_PER_TOKEN = 2  # encoder frames per token: the projector's convolution has stride 2
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * SAMPLES_PER_ENCODER_FRAME
PADDED_TOKENS = 16  # padding step of trimmed clips, in tokens


def num_audio_tokens(num_samples):
    """Returns the decoder positions that `num_samples` of audio take (25 per second, rounded up), for ints and tensors."""
    return -(-num_samples // SAMPLES_PER_TOKEN)


def padded_num_samples(longest: int, window: int, trimmed: bool) -> int:
    """Returns the length to make log-mels at: the encoder's whole `window`, or (trimmed) at least a token past the longest clip.

    A token of silence after a clip keeps its last frames independent of the padding. The lengths are rounded so that few
    sizes occur, because the FFT of every new size must be planned.
    """
    if not trimmed:
        return window
    tokens = num_audio_tokens(longest) + 1
    return min(window, -(-tokens // PADDED_TOKENS) * PADDED_TOKENS * SAMPLES_PER_TOKEN)


@dataclass(frozen=True)
class Clip:
    """Holds a decoded row: (S,) int16 PCM at 16 kHz, its label and its origin."""

    id: str
    pcm: np.ndarray
    text: str
    speaker: str = ""
    copies: int = 1  # number of times per epoch
    source: str = ""  # key for counts and scores

    @property
    def duration_s(self) -> float:
        return len(self.pcm) / SAMPLE_RATE


def require_clips(clips: Sequence, window_num_samples: int) -> None:
    """Raises ValueError unless `clips` are one-channel waveforms, (S,) each, no longer than the encoder's window.

    It also refuses a two-dimensional array, because that could be a stereo recording or two clips.
    """
    for clip in [clips] if getattr(clips, "ndim", 1) > 1 else clips:
        shape = np.shape(clip)
        if len(shape) != 1:
            raise ValueError(f"a clip is one channel of shape (samples,), not {shape}; mix stereo down, and pass clips as a list")
        if shape[0] > window_num_samples:
            window_s = window_num_samples / SAMPLE_RATE
            raise ValueError(f"a clip of {shape[0] / SAMPLE_RATE:.1f} s is over {window_s:g} s, the encoder's window; split it")
