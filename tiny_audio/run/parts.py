"""Tables that a run writes as it goes: a folder of Parquet parts, one a worker and checkpoint, named by the checkpoint's step.

A part is written before its checkpoint is begun. So what a checkpoint counts is in the tables, whatever is killed when; a part
without its checkpoint is dropped by the next start, which will meet its rows again.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.storage import put


def part_paths(folder: Path) -> list[Path]:
    """All parts, by step."""
    return sorted(folder.glob("step-*.parquet"))


def write_part(folder: Path, step: int, rank: int, rows: list[dict], schema: pa.Schema) -> None:
    """Adds a part of one worker's rows up to `step`, whole or not at all; none where there are no rows."""
    if not rows:
        return
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), data)
    put(folder / f"step-{step:08d}-rank-{rank}.parquet", data.getvalue())


def read_part(part: Path, columns: list[str]) -> pa.Table:
    return pq.read_table(io.BytesIO(part.read_bytes()), columns=columns)


def drop_parts_after(folder: Path, step: int) -> None:
    """Forgets the parts of steps that will run again."""
    for part in part_paths(folder):
        if int(part.stem.split("-")[1]) > step:
            part.unlink()
