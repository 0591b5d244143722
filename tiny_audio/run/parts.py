"""Tables that a run writes as it goes: folders of Parquet parts, one for each checkpoint, named by its step.

Rank 0 writes them. Earlier versions wrote a part for each worker, and such folders are still read.

A part is written before its checkpoint is begun. So whatever a checkpoint counts is in the tables, no matter what is killed
when; a part without its checkpoint is dropped by the next start, which will train its rows again.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.storage import put
from tiny_audio.versions import FORMAT_VERSION, require_version

PARTS_VERSION = 1  # of the tables' format; a part's metadata holds it


def part_paths(folder: Path) -> list[Path]:
    """Lists all parts, by step."""
    return sorted(folder.glob("step-*.parquet"))


def write_part(folder: Path, step: int, rows: pa.Table) -> None:
    """Adds a part of rows up to `step`, whole or not at all; without rows it adds none."""
    if not rows:
        return
    data = io.BytesIO()
    metadata = {FORMAT_VERSION: str(PARTS_VERSION)}
    pq.write_table(rows.replace_schema_metadata(metadata), data)
    put(folder / f"step-{step:08d}-rank-0.parquet", data.getvalue())


def read_part(part: Path, columns: list[str]) -> pa.Table:
    """Reads columns of a part.

    Raises:
        ConfigError: the part is of another version than this code reads.
    """
    file = pq.ParquetFile(io.BytesIO(part.read_bytes()))
    require_version(part, (file.schema_arrow.metadata or {}).get(FORMAT_VERSION.encode()), PARTS_VERSION)
    return file.read(columns)


def drop_parts_after(folder: Path, step: int) -> None:
    """Deletes the parts of steps that will run again."""
    for part in part_paths(folder):
        if int(part.stem.split("-")[1]) > step:
            part.unlink()
