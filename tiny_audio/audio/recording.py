"""Reads recordings of hours in memory that does not grow with them, and by the rules of `decode`.

A recording is decoded twice: once to check all of it and to measure what its mix depends on, so that nothing is refused
halfway; and then again, piece by piece, as fast as the pieces are taken.
"""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.decode import as_audio_errors, max_bytes, read_blocks, read_links, require_heard, require_size
from tiny_audio.audio.mix import Levels, to_int16

IN_MEMORY_BYTES = 2**26  # larger files are mapped, so that the system keeps what it has room for


class Recording:
    """Holds an encoded recording that was found to be whole; `duration_s` is its length."""

    def __init__(self, data: bytes | mmap.mmap, max_duration_s: float):
        """Checks the bytes of an audio file; raises AudioError as `decode` does."""
        self.num_bytes, self.max_duration_s = len(data), max_duration_s
        view = memoryview(data)
        require_size(view, max_duration_s)
        levels: dict[int, Levels] = {}
        num_samples: Counter[int] = Counter()  # by sample rate: a sum of seconds would be inexact
        with as_audio_errors(self.num_bytes):
            self.links = read_links(view)
            for number, rate, samples in read_blocks(self.links, max_duration_s):
                if len(samples):
                    levels.setdefault(number, Levels(samples.shape[1])).add(samples)
                    num_samples[rate] += len(samples)
            self.duration_s = sum(number / rate for rate, number in num_samples.items())
            require_heard(self.duration_s)
        self.mixes = {number: of_stretch.mix() for number, of_stretch in levels.items()}
        self.peak = max(mix.peak for mix in self.mixes.values())

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields the recording as (S,) int16 at 16 kHz, mono, in pieces of a few seconds; may be called more than once."""
        with as_audio_errors(self.num_bytes):
            for waveform in self._waveforms():
                yield to_int16(waveform, self.peak)

    def _waveforms(self) -> Iterator[np.ndarray]:
        current, resampler = None, None
        for number, rate, samples in read_blocks(self.links, self.max_duration_s, at_once=False):
            if number != current:
                yield from _rest(resampler)
                current, resampler = number, soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None
            if len(samples):
                mono = self.mixes[number](samples)
                yield resampler.resample_chunk(mono) if resampler else mono
        yield from _rest(resampler)


def _rest(resampler: soxr.ResampleStream | None) -> Iterator[np.ndarray]:
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


@contextmanager
def open_recording(source: str | Path | BinaryIO, max_duration_s: float) -> Iterator[Recording]:
    """Opens and checks a recording.

    Args:
        source: a local file's path; or an open file, read from its beginning if it can be, and copied to a temporary one if it
            is not on a disk.
        max_duration_s: longer recordings are refused, and so are files larger than their `max_bytes`.

    Raises:
        AudioError: it cannot be used, as `decode` says.
        OSError: the file cannot be read.
    """
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            yield Recording(_contents(file), max_duration_s)
    elif _is_on_disk(source):
        yield Recording(_contents(source), max_duration_s)
    else:
        if source.seekable():
            source.seek(0)
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(LimitedReader(source, max_bytes(max_duration_s) + 1), copy)
            yield Recording(_contents(copy), max_duration_s)


def _is_on_disk(file: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # io.UnsupportedOperation is one
        return False


def _contents(file: BinaryIO) -> bytes | mmap.mmap:
    file.flush()
    if os.fstat(file.fileno()).st_size > IN_MEMORY_BYTES:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.seek(0)
    return file.read()


class LimitedReader:
    """Reads no more than `left` bytes of a file."""

    def __init__(self, file: BinaryIO, left: int):
        self.file, self.left = file, left

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data
