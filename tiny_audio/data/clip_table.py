"""Clips in Arrow: the one form in which they travel between the tasks, actors and workers of a job.

A clip or a reject is a struct with SCHEMA's fields. Evaluation and batch transcription put one into each row of a table; a
row of the training stream holds a list of them (see stream.py). Samples are read as views of the object store: a copy would
hold up Python's other threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pyarrow as pa

from tiny_audio.audio.clip import Clip
from tiny_audio.data.rows import Reject

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "speaker", "path", "reason", "source")]
    + [("num_samples", pa.int64()), ("pcm", pa.large_binary())]
)


def _values(row: Clip | Reject) -> tuple:
    """A value for each field of SCHEMA."""
    if isinstance(row, Reject):
        return row.id, "", "", row.path, row.reason, row.source, 0, b""
    return row.id, row.text, row.speaker, "", "", row.source, len(row.pcm), memoryview(row.pcm.view(np.uint8))


def clip_structs(decoded: Iterable[Clip | Reject]) -> pa.StructArray:
    """A struct for each clip or reject, in order; a reject has a `reason` and no PCM."""
    columns = list(zip(*map(_values, decoded), strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(SCHEMA))


def _samples(column: pa.LargeBinaryArray) -> list[np.ndarray]:
    """Views the bytes of each value as (S,) int16 samples; the `as_buffer` of a value of an array would copy them."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1] if len(column) else []
    pcm = np.frombuffer(data or b"", np.uint8)
    return [pcm[start:end].view(np.int16) for start, end in pairwise(ends)]


def read_structs(structs: pa.StructArray) -> list[Clip | Reject]:
    """Returns what `clip_structs` was given."""
    texts = [structs.field(name).to_pylist() for name in ("id", "text", "speaker", "path", "reason", "source")]
    return [
        Reject(row_id, reason, path, source) if reason else Clip(row_id, pcm, text, speaker, source=source)
        for row_id, text, speaker, path, reason, source, pcm in zip(*texts, _samples(structs.field("pcm")), strict=True)
    ]


def clip_table(decoded: Iterable[Clip | Reject]) -> pa.Table:
    """A table with a row for each clip or reject, in order."""
    return pa.Table.from_struct_array(clip_structs(decoded))


def table_pcm(table: pa.Table) -> list[np.ndarray]:
    """Views the (S,) int16 samples of each row; a reject has none."""
    return [samples for chunk in table.column("pcm").chunks for samples in _samples(chunk)]
