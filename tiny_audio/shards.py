"""Rows of Parquet shards to decoded clips, and the rejects among them with their reasons. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import fsspec
import numpy as np
import pyarrow.parquet as pq

from tiny_audio.decode import SAMPLE_RATE, AudioError, decode
from tiny_audio.labels import Truecaser, clean_label
from tiny_audio.loquacious import source_of
from tiny_audio.plan import RowSlice

READ_COLUMNS = ("ID", "wav", "text", "spk_id", "duration")


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
    """A row that cannot be used. `reason` is one of `decode.REASONS`, "no_id", "no_label" or "unreadable"."""

    id: str
    reason: str
    path: str

    @property
    def source(self) -> str:
        return source_of(self.id)


def read_rows(part: RowSlice) -> list[dict]:
    """The rows of a slice as dicts, audio still encoded."""
    with fsspec.open(part.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        columns = [name for name in READ_COLUMNS if name in parquet.schema_arrow.names]
        return parquet.read_row_group(part.row_group, columns=columns).slice(part.start, part.stop - part.start).to_pylist()


def decode_row(row: dict, path: str, max_duration_s: float, truecaser: Truecaser | None = None) -> Clip | Reject:
    """One row decoded, or the reason why not. What its columns tell is not found out by decoding."""
    name, text = row["ID"] or "", clean_label(row["text"] or "")
    if not name:
        return Reject(name, "no_id", path)
    if not text:
        return Reject(name, "no_label", path)
    if (row.get("duration") or 0.0) > max_duration_s:
        return Reject(name, "too_long", path)
    try:
        pcm = decode((row["wav"] or {}).get("bytes") or b"", max_duration_s)
    except AudioError as error:
        return Reject(name, error.reason, path)
    return Clip(name, pcm, truecaser(text) if truecaser else text, row.get("spk_id") or "")


def decode_file(path: str, max_duration_s: float) -> Clip | Reject:
    """One audio file decoded, or the reason why not; its path is its id, and it has no label."""
    try:
        with fsspec.open(path, "rb") as file:
            return Clip(path, decode(file.read(), max_duration_s), "")
    except AudioError as error:
        return Reject(path, error.reason, path)
    except OSError:
        return Reject(path, "unreadable", path)


def row_copies(row_id: str, weights: dict[str, float], seed: int, epoch: int) -> int:
    """How often an epoch takes a row, by the weight of its source: of 0.25, a quarter of the rows, others in each epoch.

    Of 1.5, every row once and half of them again; without a weight, once. Depends on nothing but its arguments.
    """
    weight = weights.get(source_of(row_id), 1.0) if weights else 1.0
    if weight.is_integer():
        return int(weight)
    digest = hashlib.blake2b(f"{seed} {epoch} {row_id}".encode(), digest_size=8).digest()
    drawn = int.from_bytes(digest, "big") / 2**64
    return int(weight) + (drawn < weight % 1)


def _once(row_id: str) -> int:
    return 1


@dataclass
class Decoded:
    """The rows of some slices, in order: those that can be used, those that cannot, and of how many it was not the turn."""

    clips: list[Clip] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # by source


def decode_slices(
    slices: Iterable[RowSlice],
    max_duration_s: float,
    truecaser: Truecaser | None = None,
    copies: Callable[[str], int] = _once,
) -> Decoded:
    """All rows of the slices.

    Args:
        copies: how often to take the row of an ID; one that is not taken is not decoded either.
    """
    found = Decoded()
    for part in slices:
        for row in read_rows(part):
            count = copies(row["ID"] or "")
            if count == 0:
                source = source_of(row["ID"] or "")
                found.left_out[source] = found.left_out.get(source, 0) + 1
                continue
            decoded = decode_row(row, part.path, max_duration_s, truecaser)
            if isinstance(decoded, Reject):
                found.rejects.append(decoded)
            else:
                found.clips += [decoded] * count
    return found
