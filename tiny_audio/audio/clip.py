"""A clip of sound, and how long it is: in samples, encoder frames and tokens. The rates that all else derives from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
N_FFT = 400  # 25 ms, Whisper's window (Radford et al. 2022, 2.2)
HOP_SAMPLES = 160  # 10 ms
SAMPLES_PER_ENCODER_FRAME = 2 * HOP_SAMPLES  # Whisper's second convolution has stride 2
FRAMES_PER_TOKEN = 2  # encoder frames that the projector makes a token of: its convolution has stride 2
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * SAMPLES_PER_ENCODER_FRAME
PADDED_TOKENS = 16  # trimmed clips are padded to multiples of this many tokens


def num_audio_tokens(num_samples):
    """Decoder positions that `num_samples` of audio take: 25 a second, rounded up. For ints and tensors."""
    return -(-num_samples // SAMPLES_PER_TOKEN)


def padded_num_samples(longest: int, window: int, trimmed: bool) -> int:
    """Length that log-mels are made at: the encoder's whole `window`, or (trimmed) at least a token past the longest clip.

    A token of silence behind a clip keeps its last frames independent of how far it is padded. Few lengths occur, since
    an FFT of a new size must be planned.
    """
    if not trimmed:
        return window
    tokens = num_audio_tokens(longest) + 1
    return min(window, -(-tokens // PADDED_TOKENS) * PADDED_TOKENS * SAMPLES_PER_TOKEN)


@dataclass(frozen=True)
class Clip:
    """A decoded row: (S,) int16 PCM at 16 kHz, its label and where it came from."""

    id: str
    pcm: np.ndarray
    text: str
    speaker: str = ""
    copies: int = 1  # how often its epoch takes it
    source: str = ""  # what it is counted and scored by

    @property
    def duration_s(self) -> float:
        return len(self.pcm) / SAMPLE_RATE


def require_clips(clips: Sequence, window_num_samples: int) -> None:
    """Raises ValueError unless `clips` are one-channel waveforms, (S,) each, no longer than the encoder's window.

    One array of two dimensions is refused, for it may be a stereo recording as well as two clips.
    """
    for clip in [clips] if getattr(clips, "ndim", 1) > 1 else clips:
        shape = np.shape(clip)
        if len(shape) != 1:
            raise ValueError(f"a clip is one channel of shape (samples,), not {shape}; mix stereo down, and pass clips as a list")
        if shape[0] > window_num_samples:
            window_s = window_num_samples / SAMPLE_RATE
            raise ValueError(f"a clip of {shape[0] / SAMPLE_RATE:.1f} s is over {window_s:g} s, the encoder's window; split it")
