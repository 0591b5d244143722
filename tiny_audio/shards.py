"""Rows of Parquet shards to decoded clips, and the rejects among them with their reasons. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow.parquet as pq

from tiny_audio.decode import SAMPLE_RATE, AudioError, decode
from tiny_audio.plan import RowSlice
from tiny_audio.text import clean_transcript

READ_COLUMNS = ("ID", "wav", "text", "spk_id")


@dataclass(frozen=True)
class Clip:
    """A decoded row: (S,) int16 PCM at 16 kHz, its label and where it came from."""

    id: str
    pcm: np.ndarray
    text: str
    speaker: str = ""

    @property
    def duration_s(self) -> float:
        return len(self.pcm) / SAMPLE_RATE


@dataclass(frozen=True)
class Reject:
    """A row that cannot be used. `reason` is one of `decode.REASONS`, "no_label" or "unreadable"."""

    id: str
    reason: str
    path: str


def read_rows(part: RowSlice) -> list[dict]:
    """The rows of a slice as dicts, audio still encoded."""
    with fsspec.open(part.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        columns = [name for name in READ_COLUMNS if name in parquet.schema_arrow.names]
        return parquet.read_row_group(part.row_group, columns=columns).slice(part.start, part.stop - part.start).to_pylist()


def decode_row(row: dict, path: str, max_duration_s: float) -> Clip | Reject:
    """One row decoded, or the reason why not."""
    name, text = row["ID"] or "", clean_transcript(row["text"] or "")
    if not text:
        return Reject(name, "no_label", path)
    try:
        pcm = decode((row["wav"] or {}).get("bytes") or b"", max_duration_s)
    except AudioError as error:
        return Reject(name, error.reason, path)
    return Clip(name, pcm, text, row.get("spk_id") or "")


def decode_file(path: str, max_duration_s: float) -> Clip | Reject:
    """One audio file decoded, or the reason why not; its path is its id, and it has no label."""
    try:
        with fsspec.open(path, "rb") as file:
            return Clip(path, decode(file.read(), max_duration_s), "")
    except AudioError as error:
        return Reject(path, error.reason, path)
    except OSError:
        return Reject(path, "unreadable", path)


def decode_slices(slices: Iterable[RowSlice], max_duration_s: float) -> tuple[list[Clip], list[Reject]]:
    """All rows of the slices, in order, parted into clips and rejects."""
    clips: list[Clip] = []
    rejects: list[Reject] = []
    for part in slices:
        for row in read_rows(part):
            decoded = decode_row(row, part.path, max_duration_s)
            (clips if isinstance(decoded, Clip) else rejects).append(decoded)
    return clips, rejects
