"""The audit of a run's ledger: every planned row was trained once or rejected, none is missing and none came twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tiny_audio.config import TrainConfig, require
from tiny_audio.data.columns import Columns
from tiny_audio.data.footers import is_damage, read_mix
from tiny_audio.data.plan import RowGroup, epoch_groups, slice_of, steps_per_epoch
from tiny_audio.data.rows import UNREADABLE
from tiny_audio.data.shards import RowNames, read_names, row_copies
from tiny_audio.run.ledger import LEDGER
from tiny_audio.run.parts import part_paths, read_part
from tiny_audio.run.plan_file import kept_plan
from tiny_audio.run.rejects import NON_FINITE, REJECTS


@dataclass
class EpochAudit:
    """The rows of one epoch, counted. If nothing was lost and nothing came twice, `num_missing` and `num_twice` are 0."""

    epoch: int
    num_rows: int  # rows that the plan takes
    num_trained: int
    num_rejected: int
    num_missing: int
    num_twice: int

    @property
    def is_whole(self) -> bool:
        return not self.num_missing and not self.num_twice


@dataclass
class PlannedFile:
    """The rows that an epoch takes from a file. Their IDs are unknown if the file cannot be read now."""

    num_rows: int = 0
    ids: Counter[str] = field(default_factory=Counter)  # each as often as its row is taken; see row_copies
    is_readable: bool = True


@dataclass
class Rejected:
    """The rejects of an epoch, by the name of their file: a run's data may have moved."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)  # by file and ID
    unreadable: Counter[str] = field(default_factory=Counter)  # without an ID, by file
    clips: Counter[str] = field(default_factory=Counter)  # by ID: skipped in a step, where no clip knows its file

    def in_file(self, name: str) -> int:
        """Counts the rejects of a file."""
        return self.unreadable[name] + sum(count for (file, _), count in self.rows.items() if file == name)

    def total(self) -> int:
        """Counts the rejects of every kind: rows, files without IDs, and clips of a step."""
        return self.rows.total() + self.unreadable.total() + self.clips.total()


def _trained_ids(folder: Path) -> dict[int, Counter[str]]:
    """Counts the IDs in a ledger, by epoch."""
    trained: dict[int, Counter[str]] = {}
    for part in part_paths(folder):
        table = read_part(part, ["epoch", "id"])
        for epoch, row_id in zip(table["epoch"].to_pylist(), table["id"].to_pylist(), strict=True):
            trained.setdefault(epoch, Counter())[row_id] += 1
    return trained


def _rejected(folder: Path) -> dict[int, Rejected]:
    """Reads a run's rejects, by epoch."""
    epochs: dict[int, Rejected] = {}
    for part in part_paths(folder):
        for row in read_part(part, ["epoch", "id", "reason", "path"]).to_pylist():
            rejected, name = epochs.setdefault(row["epoch"], Rejected()), Path(row["path"] or "").name
            if row["reason"] == NON_FINITE:
                rejected.clips[row["id"]] += 1
            elif row["reason"] == UNREADABLE:
                rejected.unreadable[name] += 1
            else:
                rejected.rows[name, row["id"]] += 1
    return epochs


def _group_rows(group: RowGroup, columns: Columns) -> list[RowNames] | None:
    """Reads the names of a row group's rows; None if its file is damaged or gone."""
    try:
        rows = read_names(slice_of(group, 0, group.num_rows), columns)
    except Exception as error:
        if not is_damage(error, group.path):
            raise
        return None
    return rows if len(rows) == group.num_rows else None


def _planned_files(
    groups: list[RowGroup], copies: Callable[[str, str], int], columns: Columns
) -> tuple[dict[str, PlannedFile], dict[str, int]]:
    """Lists the rows of an epoch's row groups by the name of their file. Reads no audio.

    Also returns how often the epoch takes each row, by its ID, where that is not once.
    """
    files: dict[str, PlannedFile] = {}
    times: dict[str, int] = {}
    for group in groups:
        file, rows = files.setdefault(Path(group.path).name, PlannedFile()), _group_rows(group, columns)
        file.num_rows += group.num_rows
        file.is_readable &= rows is not None
        for row in rows or []:
            count = copies(row.id, row.source)
            file.ids[row.id] += count
            if count != 1:
                times[row.id] = count
    return files, times


def audit_epoch(
    epoch: int, files: dict[str, PlannedFile], trained: Counter[str], rejected: Rejected, copies: Callable[[str], int]
) -> EpochAudit:
    """Compares what was trained and rejected in an epoch with its plan.

    Rows of files that can be read now are compared by ID. A row that was rejected without an ID, because its file could not
    be read then, stands for one that is missing from that file. Rows of files that cannot be read now are only counted.
    """
    readable = {name: file for name, file in files.items() if file.is_readable}
    planned: Counter[str] = Counter()
    for file in readable.values():
        planned.update(file.ids)
    seen = trained + rejected.clips
    for (name, row_id), count in rejected.rows.items():
        if name not in files or name in readable:
            seen[row_id] += count * copies(row_id)
    lost, beyond = planned - seen, seen - planned
    for name, num_unnamed in rejected.unreadable.items():
        for row_id in readable[name].ids if name in readable else ():
            while num_unnamed and lost[row_id] > 0:
                lost[row_id] -= copies(row_id)
                num_unnamed -= 1
    num_counted = sum(file.num_rows - rejected.in_file(name) for name, file in files.items() if not file.is_readable)
    num_unknown = sum(count for row_id, count in beyond.items() if row_id not in planned)
    num_planned = planned.total() + sum(file.num_rows for file in files.values() if not file.is_readable)
    num_missing = (+lost).total() + max(0, num_counted - num_unknown)
    num_twice = beyond.total() - min(max(0, num_counted), num_unknown) + max(0, -num_counted)
    return EpochAudit(epoch, num_planned, trained.total(), rejected.total(), num_missing, num_twice)


def audit(config: TrainConfig) -> list[EpochAudit]:
    """Compares every finished epoch's ledger and rejects with the shards.

    Raises:
        ConfigError: the run has no ledger, or no plan of its own and a shard that cannot be read, or a file of another version.
    """
    run_dir, data = config.run_dir, config.data
    trained, rejected = _trained_ids(run_dir / LEDGER), _rejected(run_dir / REJECTS)
    require(bool(trained), f"{run_dir}: no {LEDGER} there; name the config.yaml of a run that has trained")
    groups = kept_plan(run_dir, data) or read_mix(data.train_weights, data.max_train_rows, columns=data.columns)
    last_step = max(int(part.stem.split("-")[1]) for part in part_paths(run_dir / LEDGER))
    audits, end = [], 0
    for epoch in range(max(trained | rejected) + 1):
        taken = epoch_groups(groups, config.seed, epoch)
        end += steps_per_epoch(taken, data.batch_rows)
        if end > last_step:
            break
        copies = partial(row_copies, weights=data.source_weights, seed=config.seed, epoch=epoch)
        files, times = _planned_files(taken, copies, data.columns)
        unread = [name for name, file in files.items() if not file.is_readable]
        weighed = bool(unread) and bool(data.source_weights)
        require(not weighed, f"{unread and unread[0]}: cannot be read; with data.source_weights an audit needs all IDs")
        of_epoch = trained.get(epoch, Counter()), rejected.get(epoch, Rejected())
        audits.append(audit_epoch(epoch, files, *of_epoch, lambda row_id, times=times: times.get(row_id, 1)))
    return audits
