"""Clips as rows of an Arrow table: the one form in which they travel between the tasks and actors of a job."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from tiny_audio.audio.clip import Clip
from tiny_audio.data.rows import Reject

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "speaker", "path", "reason")]
    + [("num_samples", pa.int64()), ("pcm", pa.large_binary())]
)


def _row(decoded: Clip | Reject) -> dict:
    if isinstance(decoded, Reject):
        row = {"id": decoded.id, "text": "", "speaker": "", "path": decoded.path, "reason": decoded.reason}
        return {**row, "num_samples": 0, "pcm": b""}
    row = {"id": decoded.id, "text": decoded.text, "speaker": decoded.speaker, "path": "", "reason": ""}
    return {**row, "num_samples": len(decoded.pcm), "pcm": decoded.pcm.tobytes()}


def clip_table(decoded: Iterable[Clip | Reject]) -> pa.Table:
    """A row for each clip or reject, in order; a reject is a row with a `reason` and no PCM."""
    return pa.Table.from_pylist([_row(one) for one in decoded], schema=SCHEMA)


def row_pcm(row: dict) -> np.ndarray:
    """The (S,) int16 samples of a row, as a view of its bytes."""
    return np.frombuffer(row["pcm"], np.int16)
