"""Tables that a run writes as it goes: a folder of Parquet parts, one a worker and checkpoint, named by the checkpoint's step.

A part is written before its checkpoint is begun. So what a checkpoint counts is in the tables, whatever is killed when; a part
without its checkpoint is dropped by the next start, which will meet its rows again.
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
    """Forgets the parts of steps that will run again."""
    for part in part_paths(folder):
        if int(part.stem.split("-")[1]) > step:
            part.unlink()
