"""Batch transcription of audio files through Ray Data: each file becomes a line of JSON, a bad one a line with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import fsspec
import pyarrow as pa
import ray.data

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.audio.decode import AudioError, decode, max_bytes
from tiny_audio.data.clip_table import clip_table
from tiny_audio.data.rows import UNREADABLE, Reject
from tiny_audio.inference.config import TranscribeConfig
from tiny_audio.inference.pool import TranscribeSettings, transcribe_dataset
from tiny_audio.model.saved import read_model_window_s
from tiny_audio.storage import output_path, require_model

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
    """Transcribes all inputs into the output file; returns how many files were transcribed and how many were rejected.

    Args:
        paths: the files, as `find_audio` lists those that `config.inputs` names.
        show_progress: wraps the iterable of transcribed rows; its second argument is their number.
        start_ray: starts Ray, once all inputs are checked; not needed if Ray is up already.

    Raises:
        ConfigError: there is no such model.
    """
    model = require_model(config.model)
    settings = TranscribeSettings(model, config.num_actors, config.use_gpu, config.num_threads, config.batch_rows)
    max_duration_s, output = read_model_window_s(model), output_path(config.output)
    start_ray()
    rows = transcribe_dataset(file_dataset(paths, max_duration_s), settings).iter_rows()
    num_rejected = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as file:
        for row in show_progress(rows, len(paths)):
            num_rejected += bool(row["reason"])
            file.write(json.dumps(_output_line(row), ensure_ascii=False) + "\n")
    return len(paths) - num_rejected, num_rejected


def _decode_files(table: pa.Table, max_duration_s: float) -> pa.Table:
    return clip_table([decode_file(path, max_duration_s) for path in table["path"].to_pylist()])


def file_dataset(paths: list[str], max_duration_s: float) -> ray.data.Dataset:
    """Decodes audio files into a dataset of rows like `clip_dataset`'s; a row's id is its file's path."""
    return ray.data.from_items([{"path": path} for path in paths]).map_batches(
        _decode_files, batch_size=FILES_PER_TASK, batch_format="pyarrow", fn_kwargs={"max_duration_s": max_duration_s}
    )


def decode_file(path: str, max_duration_s: float) -> Clip | Reject:
    """Decodes one audio file into a clip without a label whose id is the path, or returns a reject with its reason."""
    try:
        with fsspec.open(path, "rb") as file:
            return Clip(path, decode(file.read(max_bytes(max_duration_s) + 1), max_duration_s), "")
    except AudioError as error:
        return Reject(path, error.reason, path)
    except OSError:
        return Reject(path, UNREADABLE, path)
