"""The ledger of a run: which row was trained at which step, and the audit of it: none missing, none twice.

ledger.parquet holds a row for every trained clip, made silence apart; rejects.parquet the rows that could not be used.
Together they must be the rows of the shards, once for each time that an epoch's plan takes them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.batch import WorkerBatch
from tiny_audio.config import TrainConfig, require
from tiny_audio.parts import part_paths, read_part, write_part
from tiny_audio.plan import RowGroup, epoch_groups, read_mix, steps_per_epoch
from tiny_audio.rejects import REJECTS, SkippedRow
from tiny_audio.shards import row_copies, texts

LEDGER = "ledger.parquet"
SCHEMA = pa.schema([("epoch", pa.int32()), ("step", pa.int64()), ("id", pa.string())])


@dataclass
class Ledger:
    """What one worker writes into it."""

    run_dir: Path
    rank: int
    unwritten: list[dict] = field(default_factory=list)

    def add(self, batch: WorkerBatch) -> None:
        spoken = (clip for clip in batch.clips if clip.text)
        self.unwritten += [{"epoch": batch.epoch, "step": batch.step, "id": clip.id} for clip in spoken]

    def take_out(self, skipped: list[SkippedRow]) -> None:
        """Forgets rows of this worker that were not trained after all."""
        for row in skipped:
            self.unwritten.remove({"epoch": row.epoch, "step": row.step, "id": row.id})

    def write(self, step: int) -> None:
        write_part(self.run_dir / LEDGER, step, self.rank, self.unwritten, SCHEMA)
        self.unwritten = []


@dataclass
class EpochAudit:
    """One epoch's rows, counted. `num_missing` and `num_twice` are 0 where nothing was lost and nothing came twice."""

    epoch: int
    num_rows: int  # that the plan takes
    num_trained: int
    num_rejected: int
    num_missing: int
    num_twice: int

    @property
    def is_whole(self) -> bool:
        return not self.num_missing and not self.num_twice


def _ids_by_epoch(folder: Path) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = {}
    for part in part_paths(folder):
        table = read_part(part, ["epoch", "id"])
        for epoch, row_id in zip(table["epoch"].to_pylist(), table["id"].to_pylist(), strict=True):
            found.setdefault(epoch, Counter())[row_id] += 1
    return found


def _planned_ids(groups: list[RowGroup], config: TrainConfig, epoch: int) -> Counter[str]:
    """The ids of an epoch's rows, as often as it takes them. Reads the shards' ID column alone."""
    ids: Counter[str] = Counter()
    for group in epoch_groups(groups, config.seed, epoch):
        with fsspec.open(group.path, "rb") as file:
            column = pq.ParquetFile(file).read_row_group(group.index, columns=["ID"])["ID"]
        for row_id in texts(column)[: group.num_rows]:
            ids[row_id or ""] += row_copies(row_id or "", config.data.source_weights, config.seed, epoch)
    return ids


def audit(config: TrainConfig) -> list[EpochAudit]:
    """Holds every finished epoch's ledger and rejects against the shards.

    Raises:
        ConfigError: the run has no ledger.
    """
    trained, rejected = (_ids_by_epoch(config.run_dir / name) for name in (LEDGER, REJECTS))
    require(bool(trained), f"{config.run_dir}: no {LEDGER} there; name the config.yaml of a run that has trained")
    groups = read_mix(config.data.train_weights, config.data.max_train_rows)
    last_step = max(int(part.stem.split("-")[1]) for part in part_paths(config.run_dir / LEDGER))
    audits, end = [], 0
    for epoch in range(max(trained | rejected) + 1):
        end += steps_per_epoch(epoch_groups(groups, config.seed, epoch), config.data.batch_rows)
        if end > last_step:
            break
        planned = _planned_ids(groups, config, epoch)
        good, bad = (found.get(epoch, Counter()) for found in (trained, rejected))
        counts, seen = (planned.total(), good.total(), bad.total()), good + bad
        nameless = seen.pop("", 0) - planned.pop("", 0)  # rows of files that could not be read have no id
        lost = (planned - seen).total()
        audits.append(EpochAudit(epoch, *counts, max(0, lost - nameless), (seen - planned).total()))
    return audits
