"""The audio formats of a realtime session, decoded as their bytes come."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

from tiny_audio.audio.clip import SAMPLE_RATE


def _g711(subtype: str) -> np.ndarray:
    """Returns the sample of each byte by one of G.711's two laws, (256,) float32 in -1..1, as libsndfile reads them."""
    every_byte, options = io.BytesIO(bytes(range(256))), {"format": "RAW", "subtype": subtype, "channels": 1}
    return soundfile.read(every_byte, samplerate=8000, dtype="float32", **options)[0]


U_LAW, A_LAW = _g711("ULAW"), _g711("ALAW")


@dataclass(frozen=True)
class AudioFormat:
    """Says how many samples a second a format has, how many bytes each, and what they mean: bytes -> (S,) float32 in -1..1."""

    rate: int
    sample_bytes: int
    samples: Callable[[bytes], np.ndarray]


FORMATS = {
    "audio/pcm": AudioFormat(24_000, 2, lambda data: np.frombuffer(data, "<i2") / np.float32(32768)),
    "audio/pcmu": AudioFormat(8_000, 1, lambda data: U_LAW[np.frombuffer(data, np.uint8)]),
    "audio/pcma": AudioFormat(8_000, 1, lambda data: A_LAW[np.frombuffer(data, np.uint8)]),
}


class Decoder:
    """Decodes one stream to (S,) int16 at 16 kHz; a piece of it may end within a sample."""

    def __init__(self, audio_format: AudioFormat):
        self.audio_format, self.rest = audio_format, b""
        self.resampler = self._resampler()

    def _resampler(self) -> soxr.ResampleStream:
        return soxr.ResampleStream(self.audio_format.rate, SAMPLE_RATE, 1)

    def add(self, data: bytes) -> np.ndarray:
        """Decodes the next bytes."""
        data = self.rest + data
        whole = len(data) // self.audio_format.sample_bytes * self.audio_format.sample_bytes
        self.rest = data[whole:]
        return self._resampled(self.audio_format.samples(data[:whole]))

    def finish(self) -> np.ndarray:
        """Returns what the resampler still held back; the next bytes begin a new stream."""
        pcm = self._resampled(np.zeros(0, np.float32), last=True)
        self.rest, self.resampler = b"", self._resampler()
        return pcm

    def _resampled(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        waveform = self.resampler.resample_chunk(samples, last=last)
        return np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)
