"""Turns real-world recordings into mono int16, and copes with channels that cancel, offsets and float files of any scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DEAD_CHANNEL = 1e-4  # share of the loudest channel's energy: silence 40 dB below it
CANCELLED = 0.1  # share of the loudest channel's energy: a mean below it only with cancelling channels
MATERIAL_OFFSET = 4.0  # times the sound's own energy: above the natural offset of some voices
LOUDEST = 2.0  # full scale 1, plus more than any codec's overshoot
INT16_SCALE = 2.0**15
# A model trained on ordinary levels mishears fainter ones: the quickstart's on 120 test clips had a WER of 1.3 % as they
# are and 20 dB down, 3.1 % at 30 dB, 21 % at 40 dB, 100 % at 60 dB; raised before they become int16, 1.3 % at all of them.
FAINT = 1 / 32  # upper limit of raised peaks; none of 7,475 synthetic and recorded clips below it
AUDIBLE = 0.08  # target peak: at 0.25, words heard in brown noise
DITHER = 4 / INT16_SCALE  # highest peak without any sound


@dataclass(frozen=True)
class Mix:
    """Says how a recording becomes mono: `scale` divides it, `offset` is taken off each channel, and `channels` are averaged.

    `peak` is the highest absolute value of the result, as far as it is known without mixing.
    """

    scale: np.float32
    offset: np.ndarray  # (channels,) float32
    channels: list[int]
    peak: float

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Mixes (S, channels) float32 down to (S,) float32 with full scale 1."""
        samples = samples / self.scale if self.scale != 1 else samples
        samples = samples - self.offset if self.offset.any() else samples
        if len(self.channels) == 1:
            return samples[:, self.channels[0]]
        channels = np.ascontiguousarray(samples.T)
        return (channels if len(self.channels) == len(channels) else channels[self.channels]).mean(axis=0)


class Levels:
    """Sums up a recording, block by block, as far as its mix depends on it."""

    def __init__(self, num_channels: int):
        self.num_samples = 0
        self.total = np.zeros(num_channels)
        self.products = np.zeros((num_channels, num_channels))  # sums of products of two channels
        self.lowest, self.highest = (np.full(num_channels + 1, bound) for bound in (np.inf, -np.inf))  # the last: of their mean

    def add(self, samples: np.ndarray) -> None:
        """Takes the next (S, channels) float32 samples, one or more."""
        channels = np.ascontiguousarray(samples.T)  # sums over a channel are ten times as fast where it lies in one piece
        exact = channels.astype(np.float64)
        self.num_samples += len(samples)
        self.total += exact.sum(axis=1)
        self.products += exact @ exact.T
        for waveform, where in ((channels, slice(-1)), (channels.mean(axis=0, keepdims=True), slice(-1, None))):
            self.lowest[where] = np.minimum(self.lowest[where], waveform.min(axis=1))
            self.highest[where] = np.maximum(self.highest[where], waveform.max(axis=1))

    def mix(self) -> Mix:
        """Decides on the mix of all that was taken.

        Float files that peak above `LOUDEST` are scaled down: by int16's full scale if the peak suggests it, otherwise by the
        peak. The offset of a bad microphone input is removed where it is a material part of the signal. The channels that
        hold something are averaged; if they cancel each other, the loudest alone is taken.
        """
        peak = float(np.maximum(-self.lowest, self.highest).max())
        of_int16 = INT16_SCALE / 128 <= peak <= INT16_SCALE
        scale = np.float32(1 if peak <= LOUDEST else INT16_SCALE if of_int16 else peak)
        mean = self.total / self.num_samples
        energy = self.products.diagonal() / self.num_samples
        offset = mean * (mean**2 > MATERIAL_OFFSET * (energy - mean**2))
        products = self.products - self.num_samples * (np.outer(mean, offset) + np.outer(offset, mean) - np.outer(offset, offset))
        channels = self._channels(products)
        return Mix(scale, (offset / scale).astype(np.float32), channels, self._peak(offset, channels) / float(scale))

    def _channels(self, products: np.ndarray) -> list[int]:
        energy = np.maximum(products.diagonal(), 0)  # what rounding leaves of nothing may be below it
        alive = np.flatnonzero(energy >= DEAD_CHANNEL * energy.max()).tolist()
        of_mean = products[np.ix_(alive, alive)].sum() / len(alive) ** 2
        return [int(energy.argmax())] if of_mean < CANCELLED * energy.max() else alive

    def _peak(self, offset: np.ndarray, channels: list[int]) -> float:
        if len(channels) == 1:
            shift, which, share = offset[channels[0]], channels[0], 1.0
        else:  # channels without sound add nothing to the mean of all
            shift, which, share = offset.mean(), -1, len(offset) / len(channels)
        return share * float(max(self.highest[which] - shift, shift - self.lowest[which]))


def to_mono(samples: np.ndarray) -> np.ndarray:
    """Mixes (S, channels) float32 down to (S,) float32 with full scale 1."""
    levels = Levels(samples.shape[1])
    levels.add(samples)
    return levels.mix()(samples)


def to_int16(waveform: np.ndarray, peak: float | None = None) -> np.ndarray:
    """Converts (S,) float32 with full scale 1 to int16, and raises a faint clip until it is audible but leaves others alone.

    Args:
        peak: that of the recording which the waveform is a part of; by default, the waveform's own.
    """
    peak = float(np.abs(waveform).max()) if peak is None else peak
    raised = waveform * np.float32(AUDIBLE / peak) if DITHER < peak < FAINT else waveform
    return np.clip(np.rint(raised * 32768.0), -32768, 32767).astype(np.int16)


def is_silent(pcm: np.ndarray) -> bool:
    """Says whether (S,) int16 from `to_int16` is digital silence, which may be dithered."""
    return bool(np.abs(pcm.astype(np.int32)).max() <= DITHER * INT16_SCALE)
