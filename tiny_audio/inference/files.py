"""Batch transcription: audio files and folders -> a line of JSON each, through Ray Data. A bad file is a line with its reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pyarrow as pa
import ray.data

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.audio.decode import AudioError, decode, max_bytes
from tiny_audio.config import absolute, output_path, require, require_at_least, require_model
from tiny_audio.data.clip_table import clip_table
from tiny_audio.data.rows import UNREADABLE, Reject
from tiny_audio.inference.pool import TranscribeSettings, transcribe_dataset
from tiny_audio.model.saved import read_model_window_s

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")


@dataclass
class TranscribeConfig:
    """What to transcribe, with what."""

    model: str = "runs/quickstart/model"  # a folder that training exported, or a hub id
    inputs: list[str] = field(default_factory=list)  # audio files, and folders that are searched for them
    output: str = "transcripts.jsonl"
    num_actors: int = 1
    use_gpu: bool = False
    num_threads: int = field(default_factory=lambda: os.cpu_count() or 1)  # CPU threads of an actor, without a GPU
    batch_rows: int = 64

    def __post_init__(self):
        require_at_least(self, 1, "num_actors", "num_threads", "batch_rows")


def find_audio(inputs: list[str]) -> list[str]:
    """The files named, and those with an audio suffix in the folders named, sorted.

    Raises:
        ConfigError: nothing is named, a path does not exist, or a folder holds no audio.
    """
    require(bool(inputs), "inputs is empty; name audio files or folders: inputs=[clip.wav,recordings/]")
    found: list[str] = []
    for name in inputs:
        path = Path(absolute(name))
        require(path.exists(), f"{name}: no such file or folder")
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        require(bool(files), f"{name}: no audio in this folder (looked for {' '.join(SUFFIXES)})")
        found += [str(file) for file in files]
    return list(dict.fromkeys(found))


def _line(row: dict) -> dict:
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
    config: TranscribeConfig, show_progress: Callable[[Iterable, int], Iterable], start_ray: Callable[[], None] = lambda: None
) -> tuple[int, int]:
    """Writes the output file; returns how many files were transcribed and how many rejected.

    Args:
        show_progress: wraps the iterable of transcribed rows, whose number it is told.
        start_ray: called once all inputs are checked, unless Ray is up already.

    Raises:
        ConfigError: no such model or inputs.
    """
    paths, model = find_audio(config.inputs), require_model(config.model)
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
