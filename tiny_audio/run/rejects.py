"""The rows that a run rejected: rejects.parquet, for people to look into, and the decision whether they are too many to go on.

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
from tiny_audio.run.parts import part_paths, read_part, write_part

REJECTS = "rejects.parquet"
SCHEMA = pa.schema(
    [("epoch", pa.int32()), ("step", pa.int64()), *((name, pa.string()) for name in ("id", "source", "reason", "path"))]
)
JUDGED_ROWS = 500  # fewest rows on which a share of rejects is judged: one bad row group must not end a run
WORST_FILES = 20  # files that `worst_files` lists at most
NON_FINITE = "loss_not_finite"  # reason for a row that was read without fault but skipped in training


class SkippedRow(NamedTuple):
    """A row left out of its training step because its loss or gradient was not finite."""

    epoch: int
    step: int
    id: str
    rank: int
    source: str = "all"


def worst_files(run_dir: Path) -> list[dict]:
    """Lists the files with the most rejects, at most WORST_FILES of them, each with its rejects counted by reason."""
    reasons_by_file: dict[str, Counter[str]] = {}
    for part in part_paths(run_dir / REJECTS):
        table = read_part(part, ["path", "reason"])
        for row in table.group_by(["path", "reason"]).aggregate([([], "count_all")]).to_pylist():
            reasons_by_file.setdefault(row["path"], Counter())[row["reason"]] += row["count_all"]
    reasons_by_file.pop("", None)  # rows skipped in training, whose file is not recorded
    worst = sorted(reasons_by_file, key=lambda path: (-reasons_by_file[path].total(), path))[:WORST_FILES]
    return [{"path": path, "reasons": dict(sorted(reasons_by_file[path].items()))} for path in worst]


@dataclass
class RejectLog:
    """Collects a run's rejects, writes them to rejects.parquet and judges their share.

    It works on rank 0, whose batches carry the rejects; on other ranks it stays empty. Each judgement is on the rows read
    since the previous one, at least JUDGED_ROWS: so storage that fails late in a run is noticed too.
    """

    run_dir: Path
    max_share: float
    unwritten: list[dict] = field(default_factory=list)
    num_read: int = 0  # rows since the last judgement
    num_by_kind: Counter[tuple[str, str]] = field(default_factory=Counter)  # rejects since then, by source and reason
    num_by_file: Counter[str] = field(default_factory=Counter)  # the same rejects, by path

    def add(self, batch: WorkerBatch) -> None:
        """Takes in a batch's rejects, and counts all rows of its step as read."""
        self.num_read += batch.num_step_rows + len(batch.rejects)
        for reject in batch.rejects:
            self.num_by_kind[reject.source, reject.reason] += 1
            self.num_by_file[reject.path] += 1
            self.unwritten.append({"epoch": batch.epoch, "step": batch.step} | dataclasses.asdict(reject))

    def add_skipped(self, skipped: list[SkippedRow]) -> None:
        """Takes in any worker's rows that were read but could not be trained; their path stays empty: a clip has none."""
        for row in skipped:
            self.num_by_kind[row.source, NON_FINITE] += 1
            self.num_by_file[""] += 1
            values = {"epoch": row.epoch, "step": row.step, "source": row.source}
            self.unwritten.append(values | {"id": row.id, "reason": NON_FINITE, "path": ""})

    def write(self, step: int) -> None:
        """Writes the rejects up to `step` that are not written yet, as a part of rejects.parquet."""
        write_part(self.run_dir / REJECTS, step, pa.Table.from_pylist(self.unwritten, SCHEMA))
        self.unwritten = []

    def judge(self) -> str:
        """Returns why the run must stop, in one line, if too large a share of rows is rejected; else an empty string."""
        if self.num_read < JUDGED_ROWS:
            return ""
        num_read, by_kind, by_file = self.num_read, self.num_by_kind, self.num_by_file
        self.num_read, self.num_by_kind, self.num_by_file = 0, Counter(), Counter()
        if by_kind.total() <= self.max_share * num_read:
            return ""
        ((source, reason), num_of_kind), (path, num_in_file) = by_kind.most_common(1)[0], by_file.most_common(1)[0]
        return (
            f"{by_kind.total() / num_read:.0%} of the last {num_read} rows were rejected, more than "
            f"data.max_reject_share={self.max_share:g}; most often {num_of_kind} as {reason} in source {source}, and "
            f"{num_in_file} in {path or 'good files'}; look into {REJECTS}, mend the data or raise the "
            "limit, and start the same command again"
        )
