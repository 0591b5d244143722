"""The ledger of a run: which row was trained at which step, and the audit of it: none missing, none twice.

ledger.parquet holds a row for every trained clip except made silence; rejects.parquet holds the rows that could not be used.
Together they must be the rows of the shards, once for each time that an epoch's plan takes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tiny_audio.data.batch import WorkerBatch
from tiny_audio.run.parts import write_part
from tiny_audio.run.rejects import SkippedRow

LEDGER = "ledger.parquet"
SCHEMA = pa.schema([("epoch", pa.int32()), ("step", pa.int64()), ("id", pa.string())])


@dataclass
class Ledger:
    """What one worker has trained since the last part."""

    unwritten: list[dict] = field(default_factory=list)

    def add(self, batch: WorkerBatch) -> None:
        """Notes the spoken clips of a trained batch."""
        spoken = (clip for clip in batch.clips if clip.text)
        self.unwritten += [{"epoch": batch.epoch, "step": batch.step, "id": clip.id} for clip in spoken]

    def take_out(self, skipped: list[SkippedRow]) -> None:
        """Removes rows of this worker that were not trained after all."""
        for row in skipped:
            self.unwritten.remove({"epoch": row.epoch, "step": row.step, "id": row.id})

    def take(self) -> pa.Table:
        """Returns the rows that are in no part yet, and forgets them."""
        rows, self.unwritten = self.unwritten, []
        return pa.Table.from_pylist(rows, SCHEMA)


def write_ledger(run_dir: Path, step: int, tables: list[pa.Table]) -> None:
    """Writes a part with the rows that all workers have trained up to `step`."""
    write_part(run_dir / LEDGER, step, pa.concat_tables(tables))
