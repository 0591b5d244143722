"""Transcribes audio files in batches through Ray Data: each file becomes a line, and a bad one a line with its reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import ray.data

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.audio.decode import max_bytes
from tiny_audio.data.clip_table import clip_table
from tiny_audio.data.rows import UNREADABLE, Reject
from tiny_audio.data.shards import pcm_or_reason, read_audio
from tiny_audio.inference.config import TranscribeConfig
from tiny_audio.inference.journal import STDIN, Journal
from tiny_audio.inference.output import Output
from tiny_audio.inference.pool import TranscribeSettings, transcribed_rows
from tiny_audio.model.saved import read_model_window_s
from tiny_audio.storage import require_model

FILES_PER_TASK = 64


def _output_line(row: dict) -> dict:
    if row["reason"]:
        return {"path": row["path"], "error": row["reason"]}
    return {
        "path": row["id"],
        "text": row["hypothesis"],
        "duration_s": row["num_samples"] / SAMPLE_RATE,
        "complete": row["complete"],
        "looped": row["looped"],
    }


def transcribe_files(
    config: TranscribeConfig,
    paths: list[str],
    show_progress: Callable[[Iterable, int], Iterable],
    start_ray: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Transcribes all inputs into the output; returns how many files were transcribed and how many were rejected.

    A job that was stopped resumes: files that are done are not transcribed again. The output appears once all are done.

    Args:
        paths: the files, as `find_audio` lists those that `config.inputs` names.
        show_progress: wraps the iterable of lines, which come as files are done; its second argument is the number of files.
        start_ray: starts Ray once all inputs are checked; not needed if Ray is already running.

    Raises:
        ConfigError: the model does not exist, or the output's name is invalid.
    """
    model = require_model(config.model)
    settings = TranscribeSettings(model, config.num_actors, config.use_gpu, config.fp8, config.num_threads, config.batch_rows)
    max_duration_s, output = read_model_window_s(model), Output.of(config.output, paths)
    journal = Journal(output.journal, {"model": model})
    to_do = [path for path in paths if path not in journal.lines]
    if to_do:
        start_ray()
        for line in show_progress(_transcribed(to_do, settings, max_duration_s), len(to_do)):
            journal.add(line)
    output.write(journal.lines)
    num_rejected = sum("error" in journal.lines[path] for path in paths)
    journal.close()
    return len(paths) - num_rejected, num_rejected


def _transcribed(paths: list[str], settings: TranscribeSettings, max_duration_s: float) -> Iterator[dict]:
    """Yields an output line for each file as it is done."""
    for row in transcribed_rows(file_dataset(paths, max_duration_s), settings):
        yield _output_line(row)


def _decode_files(table: pa.Table, max_duration_s: float) -> pa.Table:
    return clip_table([decode_file(row["path"], row["data"], max_duration_s) for row in table.to_pylist()])


def file_dataset(paths: list[str], max_duration_s: float) -> ray.data.Dataset:
    """Decodes audio files into a dataset of rows like `clip_dataset`'s; a row's id is its file's path.

    The tasks read the files, except for standard input, which this process reads.
    """
    read_stdin = lambda: sys.stdin.buffer.read(max_bytes(max_duration_s) + 1)  # noqa: E731
    items = [{"path": path, "data": read_stdin() if path == STDIN else None} for path in paths]
    return ray.data.from_items(items).map_batches(
        _decode_files, batch_size=FILES_PER_TASK, batch_format="pyarrow", fn_kwargs={"max_duration_s": max_duration_s}
    )


def decode_file(path: str, data: bytes | None, max_duration_s: float) -> Clip | Reject:
    """Decodes one audio file into an unlabelled clip with the path as its id, or returns a reject with its reason."""
    encoded = read_audio(path, max_duration_s) if data is None else data
    if encoded is None:
        return Reject(path, UNREADABLE, path)
    pcm = pcm_or_reason(encoded, max_duration_s)
    return Reject(path, pcm, path) if isinstance(pcm, str) else Clip(path, pcm, "")
