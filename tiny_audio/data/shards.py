"""Decodes rows of Parquet shards to clips, and gives the reason for those it rejects. This file does not use Ray."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Timer
from typing import NamedTuple, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.audio.decode import AudioError, decode, max_bytes
from tiny_audio.audio.mix import is_silent
from tiny_audio.data.columns import Columns, audio_values, column_names, names_or_none, numbers, texts
from tiny_audio.data.labels import Truecaser, clean_label, max_label_chars
from tiny_audio.data.plan import RowSlice
from tiny_audio.data.rows import NO_FILE, UNREADABLE, LeftOut, Reject, Row
from tiny_audio.data.sources import source_of
from tiny_audio.storage import without_secrets

T = TypeVar("T")
RETRY_PAUSES_S = (1.0, 5.0, 15.0)  # pauses before remote storage is asked again
SLOW_READ_S = 60.0  # how long a row group may take to read before its file is named
BATCH_ROWS = 100  # rows of a row group that are read at once
LARGE_GROUP_BYTES = 256 * 2**20  # a larger row group is read page by page, and never whole
BUFFER_BYTES = 2**20
log = logging.getLogger(__name__)


def read_batches(part: RowSlice, names: Collection[str] | None, columns: Columns) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Yields a slice's columns by our names, up to BATCH_ROWS rows at a time, each with its first row's place in the file.

    A row group cannot be entered in its middle, so rows before the slice are read and dropped; rows after it are not read.

    Args:
        names: our names of the columns to read; None for all.
    """
    with fsspec.open(part.path, "rb") as file:
        footer = pq.ParquetFile(file)
        is_large = footer.metadata.row_group(part.row_group).total_byte_size > LARGE_GROUP_BYTES
        parquet = (
            pq.ParquetFile(file, metadata=footer.metadata, pre_buffer=False, buffer_size=BUFFER_BYTES) if is_large else footer
        )
        present = column_names(parquet.schema_arrow, columns)
        chosen = {ours: name for ours, name in present.items() if names is None or ours in names}
        first = sum(parquet.metadata.row_group(i).num_rows for i in range(part.row_group))
        start = 0
        for batch in parquet.iter_batches(BATCH_ROWS, [part.row_group], list(chosen.values())):
            cut = batch.slice(max(0, part.start - start), max(0, min(part.stop, start + len(batch)) - max(part.start, start)))
            if len(cut):
                yield first + max(start, part.start), {ours: cut.column(name) for ours, name in chosen.items()}
            start += len(batch)
            if start >= part.stop:
                return


def _row_ids(part: RowSlice, first: int, batch: dict[str, pa.Array], num_rows: int) -> list[str | None]:
    if part.file_id:
        return [f"{part.file_id}#{first + i}" for i in range(num_rows)]
    return texts(batch["ID"]) if "ID" in batch else [None] * num_rows


def _row_sources(part: RowSlice, batch: dict[str, pa.Array], ids: list[str | None]) -> list[str]:
    named = names_or_none(batch["source"]) if "source" in batch else [None] * len(ids)
    return [name or source_of(row_id or "", part.path, part.dataset) for name, row_id in zip(named, ids, strict=True)]


def read_rows(part: RowSlice, columns: Columns = {}) -> list[dict]:  # noqa: B006 (never changed)
    """Reads the rows of a slice as dicts: `ID`, `source`, `text`, `wav`, `spk_id`, `duration`.

    `wav` is a view of the encoded audio, or the path of its file as the shard gives it, or None. `ID`, `text`, `spk_id` and
    `duration` may be None.
    """
    rows = []
    for first, batch in read_batches(part, None, columns):
        num_rows = len(batch["wav"])
        values = {"ID": _row_ids(part, first, batch, num_rows), "text": texts(batch["text"]), "wav": audio_values(batch["wav"])}
        values["source"] = _row_sources(part, batch, values["ID"])
        for name, read in (("spk_id", names_or_none), ("duration", numbers)):
            values[name] = read(batch[name]) if name in batch else [None] * num_rows
        rows += [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return rows


class RowNames(NamedTuple):
    """Names a row, its source and its speaker; "" where it has no ID or no speaker."""

    id: str
    source: str
    speaker: str


def read_names(part: RowSlice, columns: Columns = {}) -> list[RowNames]:  # noqa: B006 (never changed)
    """Reads the names of each row of a slice, and no audio."""
    rows = []
    some = "text" if part.file_id else "ID"  # a column that is there, to count the rows by
    for first, batch in read_batches(part, (some, "source", "spk_id"), columns):
        num_rows = len(batch[some])
        ids = _row_ids(part, first, batch, num_rows)
        speakers = names_or_none(batch["spk_id"]) if "spk_id" in batch else [None] * num_rows
        values = zip(ids, _row_sources(part, batch, ids), speakers, strict=True)
        rows += [RowNames(row_id or "", source, speaker or "") for row_id, source, speaker in values]
    return rows


@contextmanager
def _named_while_slow(part: RowSlice) -> Iterator[None]:
    """Logs the file of a read that hangs, since that raises nothing and only this process knows which file it is."""
    message = "%s: row group %d is not read after %g s, and is waited for"
    timer = Timer(SLOW_READ_S, log.warning, (message, without_secrets(part.path), part.row_group, SLOW_READ_S))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_patiently(read: Callable[[], T], path: str, what: str) -> T | None:
    """Returns what `read` reads, or None if that fails; retries remote storage after pauses before giving up."""
    for pause_s in (*(RETRY_PAUSES_S if "://" in path else ()), None):
        try:
            return read()
        except Exception as error:  # storage clients raise many kinds, and a damaged file nearly any
            lasting = isinstance(error, (FileNotFoundError, pa.ArrowInvalid))  # a second try would meet the same
            if lasting or pause_s is None:
                log.warning("%s: %s cannot be read (%s)", without_secrets(path), what, type(error).__name__)
                break
        time.sleep(pause_s)
    return None


def read_what_is_there(part: RowSlice, columns: Columns) -> list[dict]:
    """Calls `read_rows`; returns no rows if that fails."""

    def read() -> list[dict]:
        with _named_while_slow(part):
            return read_rows(part, columns)

    return read_patiently(read, part.path, f"row group {part.row_group}") or []


def audio_path(wav: str, shard: str) -> str:
    """Returns the path or URL of an audio file that a shard names; relative paths begin at the shard's folder."""
    is_whole = "://" in wav or wav.startswith("/")
    return wav if is_whole else f"{shard.rpartition('/')[0] or '.'}/{wav}"


def read_audio(path: str, max_duration_s: float) -> bytes | None:
    """Reads an audio file, as far as `decode` may need; returns None if it is gone or cannot be read."""

    def read() -> bytes:
        with fsspec.open(path, "rb") as file:
            return file.read(max_bytes(max_duration_s) + 1)

    return read_patiently(read, path, "the audio")


def load_audio(wav: memoryview | str | None, shard: str, max_duration_s: float) -> bytes | memoryview | None:
    """Returns the encoded audio for a `wav` of `read_rows`, or None if it lies in a file that cannot be read."""
    return read_audio(audio_path(wav, shard), max_duration_s) if isinstance(wav, str) else wav or b""


def pcm_or_reason(data: bytes | memoryview | None, max_duration_s: float) -> np.ndarray | str:
    """Decodes what `load_audio` returns into (S,) int16 at 16 kHz, or returns the reason why it cannot be used."""
    if data is None:
        return NO_FILE
    try:
        return decode(data, max_duration_s)
    except AudioError as error:
        return error.reason


def _reason(row: dict, text: str, max_duration_s: float) -> str:
    """Says why a row cannot be used, as far as its columns tell without decoding; "" if they do not."""
    if not row["ID"]:
        return "no_id"
    if not text:
        return "no_label"
    if len(text) > max_label_chars(max_duration_s):
        return "label_too_long"
    return "too_long" if (row["duration"] or 0.0) > max_duration_s else ""


def decode_row(row: dict, path: str, max_duration_s: float, truecaser: Truecaser | None = None) -> Clip | Reject:
    """Decodes a row, or says why it cannot be used; checks its columns first, without decoding."""
    name, text, source = row["ID"] or "", clean_label(row["text"] or ""), row["source"]
    reason = _reason(row, text, max_duration_s)
    pcm = reason or pcm_or_reason(load_audio(row["wav"], path, max_duration_s), max_duration_s)
    if isinstance(pcm, str):
        return Reject(name, pcm, path, source)
    if is_silent(pcm):
        return Reject(name, "silent", path, source)
    if len(text) > max_label_chars(len(pcm) / SAMPLE_RATE):
        return Reject(name, "label_too_long", path, source)
    return Clip(name, pcm, truecaser(text) if truecaser else text, row["spk_id"] or "", source=source)


def row_copies(row_id: str, source: str, weights: dict[str, float], seed: int, epoch: int) -> int:
    """Says how often an epoch takes a row, by the weight of its source. The result depends only on the arguments.

    A weight of 0.25 takes a quarter of the rows, others in each epoch; a weight of 1.5 takes every row once and half of them
    again. Rows of a source without a weight are taken once.
    """
    weight = weights.get(source, 1.0)
    if weight.is_integer():
        return int(weight)
    digest = hashlib.blake2b(f"{seed} {epoch} {row_id}".encode(), digest_size=8).digest()
    drawn = int.from_bytes(digest, "big") / 2**64
    return int(weight) + (drawn < weight % 1)


def _once(row_id: str, source: str) -> int:
    return 1


def decode_slices(
    slices: Iterable[RowSlice],
    max_duration_s: float,
    truecaser: Truecaser | None = None,
    copies: Callable[[str, str], int] = _once,
    columns: Columns = {},  # noqa: B006 (never changed)
) -> list[Row]:
    """Decodes all rows of the slices in order, and returns one for each row that was planned.

    Rows that cannot be read become rejects at the places planned for them, and never an error.

    Args:
        copies: says how often to take the row with an ID and a source; a row that is not taken is not decoded either.
        columns: the files' names of columns -> ours.
    """
    decoded_rows: list[Row] = []
    for part in slices:
        rows = read_what_is_there(part, columns)
        for row in rows:
            count = copies(row["ID"] or "", row["source"])
            decoded = decode_row(row, part.path, max_duration_s, truecaser) if count else LeftOut(row["source"])
            decoded_rows.append(replace(decoded, copies=count) if isinstance(decoded, Clip) else decoded)
        unread = Reject("", UNREADABLE, part.path, source_of("", part.path, part.dataset))
        decoded_rows += [unread] * (part.stop - part.start - len(rows))
    return decoded_rows
