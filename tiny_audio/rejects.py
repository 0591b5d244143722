"""The rows that a run rejected: rejects.parquet, for people to look into, and whether they are too many to go on.

rejects.parquet is a folder with a part for each logged interval that had rejects, named by the step at its end: so a run
that is killed keeps what it wrote, and one that goes on from a checkpoint drops what it is about to meet again. A row's
`step` is the first one of the window that it was read in.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.batch import WorkerBatch

REJECTS = "rejects.parquet"
SCHEMA = pa.schema(
    [("epoch", pa.int32()), ("step", pa.int64()), *((name, pa.string()) for name in ("id", "source", "reason", "path"))]
)
JUDGED_ROWS = 500  # at least, before their share of rejects is judged: one bad row group must not end a run
WORST_FILES = 20


def drop_rejects_after(run_dir: Path, step: int) -> None:
    """Forgets the parts of steps that will run again. Every checkpoint is at the end of a part, for it is logged first."""
    for part in (run_dir / REJECTS).glob("step-*.parquet"):
        if int(part.stem.removeprefix("step-")) > step:
            part.unlink()


def worst_files(run_dir: Path) -> list[dict]:
    """The files with the most rejects, at most WORST_FILES, each with its rejects counted by reason."""
    if not (run_dir / REJECTS).is_dir():
        return []
    files: dict[str, Counter[str]] = {}
    for part in sorted((run_dir / REJECTS).glob("step-*.parquet")):
        table = pq.read_table(part, columns=["path", "reason"])
        for row in table.group_by(["path", "reason"]).aggregate([([], "count_all")]).to_pylist():
            files.setdefault(row["path"], Counter())[row["reason"]] += row["count_all"]
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
        self.num_read += batch.num_read
        for reject in batch.rejects:
            self.kinds[reject.source, reject.reason] += 1
            self.files[reject.path] += 1
            row = {"epoch": batch.epoch, "step": batch.step, "source": reject.source}
            self.unwritten.append(row | dataclasses.asdict(reject))

    def write(self, step: int) -> None:
        """Adds a part, whole or not at all, of what was rejected up to `step`."""
        if not self.unwritten:
            return
        folder = self.run_dir / REJECTS
        folder.mkdir(exist_ok=True)
        unfinished = folder / ".unfinished"  # a name that readers of Parquet folders pass over
        pq.write_table(pa.Table.from_pylist(self.unwritten, SCHEMA), unfinished)
        unfinished.rename(folder / f"step-{step:08d}.parquet")
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
            f"in {path}; look into {REJECTS}, mend the data or raise the limit, and start the same command again"
        )
