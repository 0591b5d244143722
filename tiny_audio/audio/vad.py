"""Finds speech with Silero's voice activity detector, version 6.2 (MIT, https://github.com/snakers4/silero-vad).

The weights come with its package, as safetensors; none of its code runs, since importing it would confine torch to one
thread. The network is written out here in numpy, so that decoding tasks and the HTTP ingress need no torch, and in batches:
a file's frames are seen together, and so are those of many live streams. Each stream has a state of its own.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.config import VadConfig

FRAME_SAMPLES = 512  # 32 ms, the frame that it was trained on
CONTEXT_SAMPLES = 64  # of the frame before, which it sees too
N_FFT, HOP = 256, 128
WIDTH = 128  # of its LSTM
STRIDES = (1, 2, 2, 1)  # of its four convolutions
HYSTERESIS, LOWEST = 0.15, 0.01  # speech ends this far below its threshold, but not below the second, as in Silero's own code
MIN_SPEECH_SAMPLES = SAMPLE_RATE // 10  # shorter speech is a click


@dataclass(frozen=True)
class StreamState:
    """Holds what the detector remembers of B streams: (B, CONTEXT_SAMPLES) samples, and (B, WIDTH) twice from its LSTM."""

    context: np.ndarray
    hidden: np.ndarray
    cell: np.ndarray

    @classmethod
    def start(cls, num_streams: int = 1) -> StreamState:
        """Returns the state before any sample."""
        return cls(*(np.zeros((num_streams, width), np.float32) for width in (CONTEXT_SAMPLES, WIDTH, WIDTH)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # does not overflow


def _patches(x: np.ndarray, width: int, stride: int) -> np.ndarray:
    """Lays the stretches of (N, T, C) that a convolution sees side by side: (N, T', width * C)."""
    starts = range(0, x.shape[1] - width + 1, stride)
    return np.stack([x[:, start : start + width].reshape(len(x), -1) for start in starts], axis=1)


class SpeechDetector:
    """Estimates for every frame how likely it is that someone speaks."""

    def __init__(self, weights: dict[str, np.ndarray]):
        as_matrix = lambda kernel: np.ascontiguousarray(kernel.transpose(2, 1, 0).reshape(-1, len(kernel)))  # noqa: E731
        names = [f"conv{number}" for number in range(1, 1 + len(STRIDES))]
        self.fourier = as_matrix(weights["stft_conv.weight"])
        self.convolutions = [(as_matrix(weights[f"{name}.weight"]), weights[f"{name}.bias"]) for name in names]
        self.from_input, self.from_hidden = (np.ascontiguousarray(weights[f"lstm_cell.weight_{x}h"].T) for x in "ih")
        self.bias = weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"]
        self.out, self.out_bias = weights["final_conv.weight"][0, :, 0], weights["final_conv.bias"]

    def __call__(self, samples: np.ndarray, state: StreamState) -> tuple[np.ndarray, StreamState]:
        """Listens to the next frames of B streams.

        Args:
            samples: (B, T * FRAME_SAMPLES) int16 at 16 kHz.
            state: what the call before returned for these streams, or `StreamState.start`.

        Returns:
            (B, T) probabilities of speech, and the state for the next call.
        """
        num_streams, num_frames = len(samples), samples.shape[1] // FRAME_SAMPLES
        samples = np.concatenate([state.context, samples.astype(np.float32) / 32768.0], axis=1)
        frames = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT_SAMPLES + FRAME_SAMPLES, axis=1)[:, ::FRAME_SAMPLES]
        gates = self._features(frames.reshape(num_streams * num_frames, -1)) @ self.from_input + self.bias
        gates = gates.reshape(num_streams, num_frames, -1)
        hidden, cell, seen = state.hidden, state.cell, np.empty((num_streams, num_frames, WIDTH), np.float32)
        for number in range(num_frames):
            enters, forgets, proposed, leaves = np.split(gates[:, number] + hidden @ self.from_hidden, 4, axis=1)
            cell = _sigmoid(forgets) * cell + _sigmoid(enters) * np.tanh(proposed)
            hidden = _sigmoid(leaves) * np.tanh(cell)
            seen[:, number] = hidden
        probabilities = _sigmoid(np.maximum(seen, 0) @ self.out + self.out_bias)
        return probabilities, StreamState(samples[:, -CONTEXT_SAMPLES:], hidden, cell)

    def _features(self, frames: np.ndarray) -> np.ndarray:
        """Encodes N frames with their context: (N, CONTEXT_SAMPLES + FRAME_SAMPLES) -> (N, WIDTH)."""
        padded = np.pad(frames, ((0, 0), (0, CONTEXT_SAMPLES)), mode="reflect")[..., None]
        spectrum = _patches(padded, N_FFT, HOP) @ self.fourier
        real, imaginary = np.split(spectrum, 2, axis=2)
        features = np.sqrt(real**2 + imaginary**2)
        for (kernel, bias), stride in zip(self.convolutions, STRIDES, strict=True):
            padded = np.pad(features, ((0, 0), (1, 1), (0, 0)))
            features = np.maximum(_patches(padded, 3, stride) @ kernel + bias, 0)
        return features[:, 0]


@lru_cache(maxsize=1)
def speech_detector() -> SpeechDetector:
    """Loads the detector, once per process; threads may share it.

    Raises:
        ModuleNotFoundError: the package silero-vad is not installed.
    """
    from safetensors.numpy import load_file

    package = importlib.util.find_spec("silero_vad")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("silero-vad is not installed (pip install silero-vad)")
    return SpeechDetector(load_file(Path(package.origin).with_name("data") / "silero_vad_16k.safetensors"))


@dataclass
class SpeechSpans:
    """Turns the probabilities of one stream into spans of speech, as they come.

    `began` is the first sample of a span that still goes on, or None: it is set when speech begins, and cleared when it ends.
    """

    config: VadConfig
    began: int | None = None
    num_samples: int = 0  # heard so far
    _ended: int | None = field(default=None, repr=False)  # possible end of the span, if the pause lasts

    @property
    def _threshold_of_silence(self) -> float:
        return max(LOWEST, self.config.threshold - HYSTERESIS)

    @property
    def is_speech(self) -> bool:
        """Whether a span goes on that is long enough to be no click: it will be returned when it ends."""
        return self.began is not None and self._ended is None and self.num_samples - self.began >= MIN_SPEECH_SAMPLES

    def add(self, probability: float) -> tuple[int, int] | None:
        """Takes the next frame; returns the first sample of a span that has just ended, and the first one behind it."""
        start, self.num_samples = self.num_samples, self.num_samples + FRAME_SAMPLES
        if probability >= self.config.threshold:
            self.began, self._ended = start if self.began is None else self.began, None
        elif self.began is not None and (self._ended is not None or probability < self._threshold_of_silence):
            self._ended = start if self._ended is None else self._ended
            if self.num_samples - self._ended >= self.config.silence_duration_ms * SAMPLE_RATE // 1000:
                return self.finish()
        return None

    def finish(self) -> tuple[int, int] | None:
        """Ends the span that goes on, if there is one, at the end of the stream for instance."""
        began, ended = self.began, self.num_samples if self._ended is None else self._ended
        self.began = self._ended = None
        return (began, ended) if began is not None and ended - began >= MIN_SPEECH_SAMPLES else None
