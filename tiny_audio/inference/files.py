"""Transcribes audio files in batches through Ray Data: each file becomes a line, and a bad one a line with its reason."""

from __future__ import annotations

import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import ray.data

from tiny_audio.audio.clip import Clip
from tiny_audio.audio.decode import AudioError
from tiny_audio.audio.windows import Window
from tiny_audio.data.audio_files import STDIN
from tiny_audio.data.clip_table import clip_table
from tiny_audio.data.rows import UNREADABLE, Reject
from tiny_audio.inference.config import TranscribeConfig
from tiny_audio.inference.file_windows import CutFile, Cutting, cut_file, open_audio
from tiny_audio.inference.journal import Journal
from tiny_audio.inference.lines import error_line, file_line, segment_line, word_line
from tiny_audio.inference.output import Output
from tiny_audio.inference.pool import TranscribeSettings, transcribed_rows
from tiny_audio.inference.words import Word
from tiny_audio.model.window import read_model_window_s

NO_SPEECH = Window(0, np.zeros(0, np.int16), 0, 0)
TABLE_SAMPLES = 2**24  # of the tables in which decoded sound travels: 32 MiB
STDIN_BYTES = 2**30  # longest standard input: it travels to a task in memory
PLACES = ("start_s", "end_s", "offset_s", "duration_s")


@dataclass(frozen=True)
class Part:
    """Holds a window of a file, its last part as a reject, or a file without speech; the last part knows how many there are."""

    clip: Clip | Reject
    start_s: float = 0.0
    end_s: float = 0.0
    offset_s: float = 0.0  # of the clip's first sample
    duration_s: float = 0.0
    is_long: bool = False
    num_parts: int = 0


def _output_line(rows: list[dict]) -> dict:
    """Joins the transcripts of a file's parts to a line of the output."""
    rows = sorted(rows, key=lambda row: row["start_s"])
    last = next(row for row in rows if row["num_parts"])
    if last["reason"]:
        return error_line(last["id"], last["reason"])
    segments = [_segment_line(row) for row in rows if row["num_samples"]]
    return file_line(last["id"], last["duration_s"], segments, last["is_long"])


def _segment_line(row: dict) -> dict:
    """Makes the line of a window from its row, in which the times of words are from the window's beginning."""
    offset_s, words = row["offset_s"], row["words"]
    if words is not None:
        words = [word_line(Word(**word).later(offset_s)) for word in words]
    of_text = (row["hypothesis"], row["complete"], row["looped"], row["doubtful"], words)
    return segment_line(row["start_s"], row["end_s"], *of_text)


def transcribe_files(
    config: TranscribeConfig,
    paths: list[str],
    show_progress: Callable[[Iterable, int], Iterable],
    start_ray: Callable[[], None] = lambda: None,
) -> tuple[int, int, int]:
    """Transcribes all inputs into the output; returns how many were transcribed, were rejected, and have a text that looped.

    A job that was stopped resumes: files that are done are not transcribed again. The output appears once all are done.

    Args:
        paths: the files, as `find_audio` lists those that `config.inputs` names.
        show_progress: wraps the iterable of lines, which come as files are done; its second argument is the number of files.
        start_ray: starts Ray once all inputs are checked; not needed if Ray is already running.

    Raises:
        ConfigError: the model does not exist, or the output's name is invalid.
    """
    settings = TranscribeSettings.of(config, with_words=config.words)
    encoder_window_s = read_model_window_s(settings.model)
    cutting = Cutting.of(config.window_s, encoder_window_s, config.max_duration_s, config.skip_silence, config.vad)
    output = Output.of(config.output, paths)
    journal = Journal(output.journal, {"model": settings.model, "words": config.words, **asdict(cutting)})
    to_do = [path for path in paths if path not in journal.lines]
    if to_do:
        start_ray()
        for line in show_progress(_transcribed(to_do, settings, cutting), len(to_do)):
            journal.add(line)
    output.write(journal.lines)
    num_rejected = sum("error" in journal.lines[path] for path in paths)
    num_looped = sum(journal.lines[path].get("looped", False) for path in paths)
    journal.close()
    return len(paths) - num_rejected, num_rejected, num_looped


def _transcribed(paths: list[str], settings: TranscribeSettings, cutting: Cutting) -> Iterator[dict]:
    """Yields an output line for each file as it is done."""
    rows_of: dict[str, list[dict]] = defaultdict(list)
    for row in transcribed_rows(file_dataset(paths, cutting), settings):
        rows = rows_of[row["id"]]
        rows.append(row)
        if len(rows) == max(row["num_parts"] for row in rows):
            yield _output_line(rows_of.pop(row["id"]))


def file_dataset(paths: list[str], cutting: Cutting) -> ray.data.Dataset:
    """Decodes audio files into a dataset of rows like `clip_dataset`'s, one or several for each file; their id is its path.

    The tasks read the files, except for standard input, which this process reads.
    """
    items = [{"path": path, "data": sys.stdin.buffer.read(STDIN_BYTES + 1) if path == STDIN else None} for path in paths]
    # A block is a task of its own: while files are few it is one file, which may be hours of sound.
    return ray.data.from_items(items).map_batches(
        _decode_files, batch_size=None, batch_format="pyarrow", fn_kwargs={"cutting": cutting}
    )


def _decode_files(table: pa.Table, cutting: Cutting) -> Iterator[pa.Table]:
    """Yields the parts of files in tables of a bounded size."""
    waiting, num_samples = [], 0
    for row in table.to_pylist():
        for part in file_parts(row["path"], row["data"], cutting):
            waiting.append(part)
            num_samples += len(part.clip.pcm) if isinstance(part.clip, Clip) else 0
            if num_samples > TABLE_SAMPLES:
                yield _part_table(waiting)
                waiting, num_samples = [], 0
    yield _part_table(waiting)


def _part_table(parts: list[Part]) -> pa.Table:
    table = clip_table([part.clip for part in parts])
    for name, kind in (*((name, pa.float64()) for name in PLACES), ("is_long", pa.bool_()), ("num_parts", pa.int64())):
        table = table.append_column(name, pa.array([getattr(part, name) for part in parts], kind))
    return table


def file_parts(path: str, data: bytes | None, cutting: Cutting) -> Iterator[Part]:
    """Yields the parts of an audio file, unlabelled clips with the path as their id; or a reject with its reason, as the last."""
    if data and len(data) > STDIN_BYTES:
        yield Part(Reject(path, "too_long", path), num_parts=1)
        return
    file = open_audio(path, cutting.max_duration_s) if data is None else io.BytesIO(data)
    if file is None:
        yield Part(Reject(path, UNREADABLE, path), num_parts=1)
        return
    number = 0
    try:
        with file, cut_file(file, cutting) as cut:
            for number, (window, following) in enumerate(pairwise(chain(cut.windows, [None])), 1):
                yield _part(path, window, cut, number if following is None else 0)
            if not number:
                yield _part(path, NO_SPEECH, cut, 1)
    except AudioError as error:
        yield Part(Reject(path, error.reason, path), num_parts=number + 1)
    except OSError:
        yield Part(Reject(path, UNREADABLE, path), num_parts=number + 1)


def _part(path: str, window: Window, cut: CutFile, num_parts: int) -> Part:
    places = (window.start_s, window.end_s, window.offset_s, cut.duration_s)
    return Part(Clip(path, window.pcm, ""), *places, cut.is_long, num_parts)
