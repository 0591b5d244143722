"""Decodes rows of Parquet shards to clips, and gives the reason for those it rejects. Knows nothing of Ray."""

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
SLOW_READ_S = 60.0  # how long a row group may take to read before its file is named
log = logging.getLogger(__name__)


def texts(column: pa.ChunkedArray) -> list[str | None]:
    """Returns the strings of a column, with None for a null and for what is no UTF-8: a bad row must not cost its neighbours."""
    strings: list[str | None] = []
    for value in column.cast(pa.string()).cast(pa.binary()).to_pylist():
        try:
            strings.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            strings.append(None)
    return strings


def read_rows(part: RowSlice) -> list[dict]:
    """Reads the rows of a slice as dicts; `wav` is a view of the encoded audio in the table, or None."""
    with fsspec.open(part.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        columns = [name for name in READ_COLUMNS if name in parquet.schema_arrow.names]
        table = parquet.read_row_group(part.row_group, columns=columns).slice(part.start, part.stop - part.start)
    audio = pc.struct_field(table["wav"], "bytes").cast(pa.large_binary())
    values = {name: texts(table[name]) for name in columns if name not in ("wav", "duration")}
    values["wav"] = [memoryview(value.as_buffer()) if value.is_valid else None for value in audio]
    if "duration" in columns:
        values["duration"] = table["duration"].cast(pa.float64()).to_pylist()
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


@contextmanager
def _named_while_slow(part: RowSlice) -> Iterator[None]:
    """Logs the file of a read that hangs, for it raises nothing, and only its own process knows which of thousands it is."""
    message = "%s: row group %d is not read after %g s, and is waited for"
    timer = Timer(SLOW_READ_S, log.warning, (message, part.path, part.row_group, SLOW_READ_S))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_what_is_there(part: RowSlice) -> list[dict]:
    """Calls `read_rows`; returns no rows if that fails. Remote storage is asked again, after pauses, before it gives up."""
    pauses_s = RETRY_PAUSES_S if "://" in part.path else ()
    for pause_s in (*pauses_s, None):
        with _named_while_slow(part):
            try:
                return read_rows(part)
            except Exception as error:  # storage clients raise many kinds, and a damaged file nearly any
                lasting = isinstance(error, (FileNotFoundError, pa.ArrowInvalid))  # a second try would meet the same
                if lasting or pause_s is None:
                    log.warning("%s: row group %d cannot be read (%s)", part.path, part.row_group, type(error).__name__)
                    break
        time.sleep(pause_s)
    return []


def decode_row(row: dict, path: str, max_duration_s: float, truecaser: Truecaser | None = None) -> Clip | Reject:
    """Decodes a row, or says why it cannot be used. What its columns tell already is not found out by decoding."""
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
    """Says how often an epoch takes a row, by the weight of its source. Depends on nothing but its arguments.

    A weight of 0.25 takes a quarter of the rows, others in each epoch; a weight of 1.5 takes every row once and half of them
    again. Rows of a source without a weight are taken once.
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
    """Decodes all rows of the slices in order, and returns one for each row that was planned.

    Rows that cannot be read become rejects at the places planned for them, and never an error.

    Args:
        copies: says how often to take the row with an ID; a row that is not taken is not decoded either.
    """
    decoded_rows: list[Row] = []
    for part in slices:
        rows = read_what_is_there(part)
        for row in rows:
            name = row["ID"] or ""
            count = copies(name)
            decoded = decode_row(row, part.path, max_duration_s, truecaser) if count else LeftOut(source_of(name))
            decoded_rows.append(replace(decoded, copies=count) if isinstance(decoded, Clip) else decoded)
        decoded_rows += [Reject("", UNREADABLE, part.path)] * (part.stop - part.start - len(rows))
    return decoded_rows
