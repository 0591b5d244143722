"""Turns audio files into windows for the engine: a short file is one as it is, and a longer one is cut at its pauses."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import fsspec

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.decode import AudioError, decode, max_bytes
from tiny_audio.audio.recording import IN_MEMORY_BYTES, LimitedReader, open_recording
from tiny_audio.audio.windows import Window, whole_clip, window_samples, windows
from tiny_audio.config import require
from tiny_audio.data.shards import read_patiently


@dataclass(frozen=True)
class Cutting:
    """Says how files are cut: those longer than `window_s` are, and those longer than `max_duration_s` are refused.

    With `cuts_short`, the others are cut too, at each of their pauses.
    """

    window_s: float
    max_duration_s: float
    skip_silence: bool
    vad: VadConfig
    cuts_short: bool = False

    @classmethod
    def of(
        cls, window_s: float | None, encoder_window_s: float, max_duration_s: float, skip_silence: bool, vad: VadConfig
    ) -> Cutting:
        """Returns the cutting for a model; `window_s` is by default what its encoder takes.

        Raises:
            ConfigError: `window_s` is longer than that, or shorter than a second.
        """
        window_s = encoder_window_s if window_s is None else window_s
        require(window_s >= 1, f"window_s={window_s:g} is under 1 s, the shortest window")
        require(window_s <= encoder_window_s, f"window_s={window_s:g} is over {encoder_window_s:g} s, which the encoder takes")
        return cls(window_s, max_duration_s, skip_silence, vad)


@dataclass(frozen=True)
class CutFile:
    """Holds the windows of a file that was found to be whole; none where nothing was said."""

    duration_s: float
    is_long: bool
    windows: Iterator[Window]


@contextmanager
def cut_file(file: BinaryIO, cutting: Cutting) -> Iterator[CutFile]:
    """Decodes a file, and cuts it if it is long; its windows are made as they are taken, within the context.

    Raises:
        AudioError: the file cannot be used, as `decode` says; of a long one all is checked at once.
    """
    if short := cut_short(file, cutting):
        yield short
        return
    with cut_long(file, cutting) as long:
        yield long


def cut_short(file: BinaryIO, cutting: Cutting) -> CutFile | None:
    """Does what `cut_file` does to a file that fits a window; returns None if it is longer."""
    data = file.read(max_bytes(cutting.window_s) + 1)
    try:
        pcm = decode(data, cutting.window_s)
    except AudioError as error:
        if error.reason == "too_long":
            return None
        raise
    if cutting.cuts_short:
        cut = windows([pcm], window_samples(cutting.window_s), cutting.vad)
    else:
        cut = iter(whole_clip(pcm, cutting.skip_silence, cutting.vad))
    return CutFile(len(pcm) / SAMPLE_RATE, False, cut)


@contextmanager
def cut_long(file: BinaryIO, cutting: Cutting) -> Iterator[CutFile]:
    """Does what `cut_file` does to a file that is longer than a window; its beginning is read again."""
    with open_recording(file, cutting.max_duration_s) as recording:
        cut = windows(recording.chunks(), window_samples(cutting.window_s), cutting.vad)
        yield CutFile(recording.duration_s, True, cut)


def open_audio(path: str, max_duration_s: float) -> BinaryIO | None:
    """Opens a file, and copies it to this machine if it is elsewhere; returns None if it is gone or cannot be read."""
    return read_patiently(lambda: _opened(path, max_duration_s), path, "the audio")


def _opened(path: str, max_duration_s: float) -> BinaryIO:
    if "://" not in path:
        return rereadable(open(path, "rb"), max_duration_s)
    with fsspec.open(path, "rb") as source:
        return _copied(source, max_duration_s)


def rereadable(file: BinaryIO, max_duration_s: float) -> BinaryIO:
    """Returns a file whose beginning `cut_file` can read again: the file itself, or a copy of what comes through a pipe."""
    return file if file.seekable() else _copied(file, max_duration_s)


def _copied(source: BinaryIO, max_duration_s: float) -> BinaryIO:
    """Copies a file, as far as a recording that long may reach and a byte more, by which `cut_file` knows that it is longer."""
    copy = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115
    shutil.copyfileobj(LimitedReader(source, max_bytes(max_duration_s) + 1), copy)
    copy.seek(0)
    return copy
