"""Rows of Parquet shards to decoded clips, and the rejects among them with their reasons. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Timer

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.audio.mix import is_silent
from tiny_audio.data.labels import Truecaser, clean_label, max_label_chars
from tiny_audio.data.plan import RowSlice
from tiny_audio.data.rows import UNREADABLE, LeftOut, Reject, Row
from tiny_audio.data.sources import source_of

READ_COLUMNS = ("ID", "wav", "text", "spk_id", "duration")
RETRY_PAUSES_S = (1.0, 5.0, 15.0)  # before remote storage is asked again
SLOW_READ_S = 60.0  # of a row group, until its file is named
log = logging.getLogger(__name__)


def texts(column: pa.ChunkedArray) -> list[str | None]:
    """None for a null, and for what is no UTF-8: one such row must not cost its neighbours."""
    found: list[str | None] = []
    for value in column.cast(pa.string()).cast(pa.binary()).to_pylist():
        try:
            found.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            found.append(None)
    return found


def read_rows(part: RowSlice) -> list[dict]:
    """The rows of a slice as dicts; `wav` is the encoded audio as it lies in the table, not copied, or None."""
    with fsspec.open(part.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        columns = [name for name in READ_COLUMNS if name in parquet.schema_arrow.names]
        table = parquet.read_row_group(part.row_group, columns=columns).slice(part.start, part.stop - part.start)
    audio = pc.struct_field(table["wav"], "bytes").cast(pa.large_binary())
    values = {name: texts(table[name]) for name in columns if name not in ("wav", "duration")}
    values["wav"] = [memoryview(one.as_buffer()) if one.is_valid else None for one in audio]
    if "duration" in columns:
        values["duration"] = table["duration"].cast(pa.float64()).to_pylist()
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


@contextmanager
def _named_while_slow(part: RowSlice) -> Iterator[None]:
    """A read that hangs raises nothing: only its own process knows which of the run's thousands of files it is."""
    said = "%s: row group %d is not read after %g s, and is waited for"
    timer = Timer(SLOW_READ_S, log.warning, (said, part.path, part.row_group, SLOW_READ_S))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_what_is_there(part: RowSlice) -> list[dict]:
    """`read_rows`, or none of them if that fails. Remote storage is asked again, after pauses, before it counts as failed."""
    pauses_s = RETRY_PAUSES_S if "://" in part.path else ()
    for pause_s in (*pauses_s, None):
        with _named_while_slow(part):
            try:
                return read_rows(part)
            except Exception as error:  # storage clients have many kinds, and a damaged file raises nearly any
                lasting = isinstance(error, (FileNotFoundError, pa.ArrowInvalid))  # asked again, it is the same
                if lasting or pause_s is None:
                    log.warning("%s: row group %d cannot be read (%s)", part.path, part.row_group, type(error).__name__)
                    break
        time.sleep(pause_s)
    return []


def decode_row(row: dict, path: str, max_duration_s: float, truecaser: Truecaser | None = None) -> Clip | Reject:
    """One row decoded, or the reason why not. What its columns tell is not found out by decoding."""
    name, text = row["ID"] or "", clean_label(row["text"] or "")
    if not name:
        return Reject(name, "no_id", path)
    if not text:
        return Reject(name, "no_label", path)
    if len(text) > max_label_chars(max_duration_s):
        return Reject(name, "label_too_long", path)
    if (row.get("duration") or 0.0) > max_duration_s:
        return Reject(name, "too_long", path)
    try:
        pcm = decode(row["wav"] or b"", max_duration_s)
    except AudioError as error:
        return Reject(name, error.reason, path)
    if is_silent(pcm):
        return Reject(name, "silent", path)
    if len(text) > max_label_chars(len(pcm) / SAMPLE_RATE):
        return Reject(name, "label_too_long", path)
    return Clip(name, pcm, truecaser(text) if truecaser else text, row.get("spk_id") or "")


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


def decode_slices(
    slices: Iterable[RowSlice],
    max_duration_s: float,
    truecaser: Truecaser | None = None,
    copies: Callable[[str], int] = _once,
) -> list[Row]:
    """All rows of the slices in order, one for each that was planned.

    What cannot be read is rejected, at the places planned for it, and never an error.

    Args:
        copies: how often to take the row of an ID; one that is not taken is not decoded either.
    """
    found: list[Row] = []
    for part in slices:
        rows = read_what_is_there(part)
        for row in rows:
            name = row["ID"] or ""
            count = copies(name)
            decoded = decode_row(row, part.path, max_duration_s, truecaser) if count else LeftOut(source_of(name))
            found.append(replace(decoded, copies=count) if isinstance(decoded, Clip) else decoded)
        found += [Reject("", UNREADABLE, part.path)] * (part.stop - part.start - len(rows))
    return found
