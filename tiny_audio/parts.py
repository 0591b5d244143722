"""Tables that a run writes as it goes: a folder of Parquet parts, one for each logged interval, named by the step at its end.

A run that is killed keeps what it wrote, and one that goes on from a checkpoint drops what it is about to meet again.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def part_paths(folder: Path) -> list[Path]:
    """All parts, by step."""
    return sorted(folder.glob("step-*.parquet"))


def write_part(folder: Path, step: int, rank: int, rows: list[dict], schema: pa.Schema) -> None:
    """Adds a part of one worker's rows up to `step`, whole or not at all; none where there are no rows."""
    if not rows:
        return
    folder.mkdir(exist_ok=True)
    unfinished = folder / f".unfinished-{rank}"  # a name that readers of Parquet folders pass over
    pq.write_table(pa.Table.from_pylist(rows, schema), unfinished)
    unfinished.rename(folder / f"step-{step:08d}-rank-{rank}.parquet")


def drop_parts_after(folder: Path, step: int) -> None:
    """Forgets the parts of steps that will run again. Every checkpoint is at the end of a part, for it is logged first."""
    for part in part_paths(folder):
        if int(part.stem.split("-")[1]) > step:
            part.unlink()
