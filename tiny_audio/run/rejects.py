"""The rows that a run rejected: rejects.parquet, for people to look into, and whether they are too many to go on.

rejects.parquet is a folder of parts (see parts.py). A row's `step` is the one that would have trained it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from tiny_audio.data.batch import WorkerBatch
from tiny_audio.data.sources import source_of
from tiny_audio.run.parts import part_paths, read_part, write_part

REJECTS = "rejects.parquet"
SCHEMA = pa.schema(
    [("epoch", pa.int32()), ("step", pa.int64()), *((name, pa.string()) for name in ("id", "source", "reason", "path"))]
)
JUDGED_ROWS = 500  # at least, before their share of rejects is judged: one bad row group must not end a run
WORST_FILES = 20
NON_FINITE = "loss_not_finite"  # the reason of a row that was read well and skipped in training


class SkippedRow(NamedTuple):
    """A clip that met a NaN or an infinity, and was left out of its step."""

    epoch: int
    step: int
    id: str
    rank: int

    @property
    def source(self) -> str:
        return source_of(self.id)


def worst_files(run_dir: Path) -> list[dict]:
    """The files with the most rejects, at most WORST_FILES, each with its rejects counted by reason."""
    files: dict[str, Counter[str]] = {}
    for part in part_paths(run_dir / REJECTS):
        table = read_part(part, ["path", "reason"])
        for row in table.group_by(["path", "reason"]).aggregate([([], "count_all")]).to_pylist():
            files.setdefault(row["path"], Counter())[row["reason"]] += row["count_all"]
    files.pop("", None)  # of rows that were skipped in training
    worst = sorted(files, key=lambda path: (-files[path].total(), path))[:WORST_FILES]
    return [{"path": path, "reasons": dict(sorted(files[path].items()))} for path in worst]


@dataclass
class RejectLog:
    """What a run's rank 0 does with the rejects, which travel with its batches alone; on other ranks, nothing.

    Their share is judged each time that JUDGED_ROWS were read, on these alone: storage that goes away late in a run is
    seen as well.
    """

    run_dir: Path
    max_share: float
    unwritten: list[dict] = field(default_factory=list)
    num_read: int = 0  # since the last judgement; so are the next two
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # by source and reason
    files: Counter[str] = field(default_factory=Counter)

    def add(self, batch: WorkerBatch) -> None:
        self.num_read += batch.num_step_rows + len(batch.rejects)
        for reject in batch.rejects:
            self.kinds[reject.source, reject.reason] += 1
            self.files[reject.path] += 1
            row = {"epoch": batch.epoch, "step": batch.step, "source": reject.source}
            self.unwritten.append(row | dataclasses.asdict(reject))

    def add_skipped(self, skipped: list[SkippedRow]) -> None:
        """Takes in rows of any worker that were read, and could not be trained. Clips do not know their file."""
        for row in skipped:
            self.kinds[row.source, NON_FINITE] += 1
            self.files[""] += 1
            values = {"epoch": row.epoch, "step": row.step, "source": row.source}
            self.unwritten.append(values | {"id": row.id, "reason": NON_FINITE, "path": ""})

    def write(self, step: int) -> None:
        """Adds a part of what was rejected up to `step`."""
        write_part(self.run_dir / REJECTS, step, 0, self.unwritten, SCHEMA)
        self.unwritten = []

    def judge(self) -> str:
        """What is wrong, in one line, where the share is too high; else an empty string."""
        if self.num_read < JUDGED_ROWS:
            return ""
        num_read, kinds, files = self.num_read, self.kinds, self.files
        self.num_read, self.kinds, self.files = 0, Counter(), Counter()
        if kinds.total() <= self.max_share * num_read:
            return ""
        ((source, reason), of_kind), (path, in_file) = kinds.most_common(1)[0], files.most_common(1)[0]
        return (
            f"{kinds.total() / num_read:.0%} of the last {num_read} rows were rejected, more than "
            f"data.max_reject_share={self.max_share:g}; most often {of_kind} as {reason} in source {source}, and {in_file} "
            f"in {path or 'good files'}; look into {REJECTS}, mend the data or raise the limit, and start the same command again"
        )
