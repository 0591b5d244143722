"""Defines a clip of sound, its length in samples, encoder frames and tokens, and the rates that everything else uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
N_FFT = 400  # 25 ms, Whisper's window (Radford et al. 2022, 2.2)
HOP_SAMPLES = 160  # 10 ms
SAMPLES_PER_ENCODER_FRAME = 2 * HOP_SAMPLES  # Whisper's second convolution has stride 2
PADDED_FRAMES = 32  # padding step of trimmed clips, in encoder frames


def num_audio_tokens(num_samples, frames_per_token: int):
    """Returns the decoder positions that `num_samples` of audio take, rounded up, for ints and tensors.

    `frames_per_token` is the projector's: 2 encoder frames make 25 tokens a second, 4 make 12.5.
    """
    return -(-num_samples // (frames_per_token * SAMPLES_PER_ENCODER_FRAME))


def padded_num_samples(longest: int, window: int, trimmed: bool, frames_per_token: int) -> int:
    """Returns the length to make log-mels at: the encoder's whole `window`, or (trimmed) at least a token past the longest clip.

    A token of silence after a clip keeps its last frames independent of the padding. The lengths are rounded so that few
    sizes occur, because the FFT of every new size must be planned.
    """
    if not trimmed:
        return window
    frames = frames_per_token * (num_audio_tokens(longest, frames_per_token) + 1)
    return min(window, -(-frames // PADDED_FRAMES) * PADDED_FRAMES * SAMPLES_PER_ENCODER_FRAME)


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
