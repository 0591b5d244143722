"""Batch transcription: audio files and folders -> a line of JSON each, through Ray Data. A bad file is a line with its reason."""

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


def _line(row: dict) -> dict:
    if row["reason"]:
        return {"path": row["path"], "error": row["reason"]}
    return {
        "path": row["id"],
        "text": row["hypothesis"],
        "duration_s": row["num_samples"] / SAMPLE_RATE,
        "complete": row["complete"],
    }


def transcribe_files(
    config: TranscribeConfig,
    paths: list[str],
    show_progress: Callable[[Iterable, int], Iterable],
    start_ray: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Writes the output file; returns how many files were transcribed and how many rejected.

    Args:
        paths: the files, as `find_audio` lists those that `config.inputs` names.
        show_progress: wraps the iterable of transcribed rows, whose number it is told.
        start_ray: called once all inputs are checked, unless Ray is up already.

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
            file.write(json.dumps(_line(row), ensure_ascii=False) + "\n")
    return len(paths) - num_rejected, num_rejected


FILES_A_TASK = 64


def _decode_files(table: pa.Table, max_duration_s: float) -> pa.Table:
    decoded = [decode_file(path, max_duration_s) for path in table["path"].to_pylist()]
    return clip_table(decoded)


def file_dataset(paths: list[str], max_duration_s: float) -> ray.data.Dataset:
    """Audio files decoded, a row each, as `clip_dataset` has them; the id is the path."""
    return ray.data.from_items([{"path": path} for path in paths]).map_batches(
        _decode_files, batch_size=FILES_A_TASK, batch_format="pyarrow", fn_kwargs={"max_duration_s": max_duration_s}
    )


def decode_file(path: str, max_duration_s: float) -> Clip | Reject:
    """One audio file decoded, or the reason why not; its path is its id, and it has no label."""
    try:
        with fsspec.open(path, "rb") as file:
            return Clip(path, decode(file.read(max_bytes(max_duration_s) + 1), max_duration_s), "")
    except AudioError as error:
        return Reject(path, error.reason, path)
    except OSError:
        return Reject(path, UNREADABLE, path)
