"""Transcribes files in this process, without Ray: what `tiny_audio.transcribe` and the command line do."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from weakref import finalize

import torch

from tiny_audio.audio.config import VadConfig
from tiny_audio.config import require
from tiny_audio.inference.config import MAX_DURATION_S
from tiny_audio.inference.file_windows import CutFile, Cutting, cut_file, open_audio, rereadable
from tiny_audio.inference.lines import joined
from tiny_audio.inference.long_form import Segment, transcribe_windows
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.storage import require_model


@dataclass(frozen=True)
class Transcription:
    """Holds the transcript of a file: its length, and a segment for each window of it; a short file has one, silence none."""

    duration_s: float
    segments: list[Segment]

    @property
    def text(self) -> str:
        """Returns the texts of all segments, joined by spaces."""
        return joined(segment.transcript.text for segment in self.segments)


@lru_cache(maxsize=1)
def load_transcriber(model: str, device: str = "cpu") -> Transcriber:
    """Loads a model and starts its engine; keeps the one that was asked for last.

    Args:
        model: a folder that `ASRModel.save_pretrained` or a training wrote, its URL, or a hub id.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: there is no such model, or no such device.
    """
    require(device != "cuda" or torch.cuda.is_available(), "device=cuda: this machine has no GPU that torch can use")
    transcriber = Transcriber.load(require_model(model), device)
    transcriber.warm_up()
    transcriber.engine.start()
    finalize(transcriber, transcriber.engine.close).atexit = False  # else its thread would keep the model for ever
    return transcriber


@contextmanager
def begin_transcription(
    transcriber: Transcriber, file: BinaryIO, vad: VadConfig, window_s: float | None = None
) -> Iterator[tuple[CutFile, Iterator[Segment]]]:
    """Checks a file; yields what is known of it, and its segments as they are finished, within the context.

    Args:
        file: an open file of audio in any supported format.
        vad: what counts as speech.
        window_s: files longer than this are cut; by default, what the encoder takes.

    Raises:
        AudioError: the file cannot be used.
        ConfigError: the encoder does not take `window_s`.
    """
    cutting = Cutting.of(window_s, transcriber.max_duration_s, MAX_DURATION_S, True, vad)
    with cut_file(file, cutting) as cut:
        yield cut, transcribe_windows(transcriber, cut.windows)


def transcribe(
    source: str | Path | bytes | BinaryIO,
    model: str,
    device: str = "cpu",
    vad: VadConfig | None = None,
    window_s: float | None = None,
) -> Transcription:
    """Transcribes one file of any length.

    The model is kept for the next call.

    Args:
        source: a path, a URL, the bytes of a file, or an open one.
        model: a folder that a training exported, its URL, or a hub id.
        device: "cpu" or "cuda".
        vad: what counts as speech, and where a long recording is cut.
        window_s: files longer than this are cut; by default, what the encoder takes.

    Raises:
        ConfigError: there is no such model, or no such device.
        AudioError: the file cannot be used.
        FileNotFoundError: the file is not there, or cannot be read.
    """
    transcriber = load_transcriber(str(model), device)
    with opened(source) as file, begin_transcription(transcriber, file, vad or VadConfig(), window_s) as (cut, segments):
        return Transcription(cut.duration_s, list(segments))


@contextmanager
def opened(source: str | Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    """Opens a path or URL, for as long as the context lasts; of an open file that is a pipe it yields a copy."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        file = open_audio(str(source), MAX_DURATION_S)
        if file is None:
            raise FileNotFoundError(f"{source}: no such file, or it cannot be read")
        with file:
            yield file
    else:
        yield rereadable(source, MAX_DURATION_S)
