"""The row groups that a run trains, kept by its first start: a file that breaks or goes away later takes no row's place.

plan.parquet in a run's folder has a row for each. A start that resumes from a checkpoint takes them from there, and checks
that the files are still the same; what cannot be read any more is rejected when its turn comes, as it is within a start.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.config import DataConfig, dataset_reference, require
from tiny_audio.data.dataset_files import glob_files
from tiny_audio.data.footers import read_mix, whole_footers
from tiny_audio.data.plan import RowGroup
from tiny_audio.run.checkpoint import has_checkpoint
from tiny_audio.storage import put, said_in_one_line
from tiny_audio.versions import FORMAT_VERSION, require_version

PLAN = "plan.parquet"
PLAN_VERSION = 1  # of the format; the file's metadata holds it
TYPES = {"path": pa.string(), "index": pa.int32(), "num_rows": pa.int64(), "dataset": pa.string(), "weight": pa.float64()}
FILE_ID = {"file_id": pa.string()}  # another column, where there are files without IDs
PLANNED_FROM = b"planned_from"  # the settings that the row groups follow from, in the file's metadata


def _planned_from(data: DataConfig) -> bytes:
    weights = {name: float(weight) for name, weight in data.train_weights.items()}
    return json.dumps([weights, data.max_train_rows]).encode()


def keep_plan(run_dir: Path, data: DataConfig, groups: Sequence[RowGroup]) -> None:
    """Writes plan.parquet, unless it holds these row groups already."""
    if kept_plan(run_dir, data) == list(groups):
        return
    types = TYPES | (FILE_ID if any(group.file_id for group in groups) else {})
    columns = {name: [getattr(group, name) for group in groups] for name in types}
    metadata = {PLANNED_FROM: _planned_from(data), FORMAT_VERSION: str(PLAN_VERSION)}
    file = io.BytesIO()
    pq.write_table(pa.table(columns, pa.schema(types, metadata=metadata)), file)
    with said_in_one_line(run_dir):
        put(run_dir / PLAN, file.getvalue())


def kept_plan(run_dir: Path, data: DataConfig) -> list[RowGroup]:
    """Reads plan.parquet; returns nothing for a new run, and for one whose settings for its data have changed.

    Raises:
        ConfigError: the file cannot be read, or is of another version than this code reads.
    """
    with said_in_one_line(run_dir / PLAN):
        try:
            content = (run_dir / PLAN).read_bytes()
        except FileNotFoundError:
            return []
        table = pq.read_table(io.BytesIO(content))
    require_version(run_dir / PLAN, table.schema.metadata.get(FORMAT_VERSION.encode()), PLAN_VERSION)
    if table.schema.metadata[PLANNED_FROM] != _planned_from(data):
        return []
    return [RowGroup(**row) for row in table.to_pylist()]


def _require_same(path: str, then: list[RowGroup], now: list[RowGroup], run_dir: Path, max_rows: int | None) -> None:
    """Refuses a file with other row groups than planned.

    `max_rows` may have cut off the file's last row groups, and a part of the last one that is left.
    """
    sizes_then, sizes_now = ([(group.index, group.num_rows) for group in groups if group.num_rows] for groups in (then, now))
    if max_rows is not None:
        sizes_now = sizes_now[: len(then)]
        if sizes_now and sizes_now[-1] > sizes_then[-1]:
            sizes_now[-1] = sizes_then[-1]
    remedy = f"its row groups are not those that {run_dir} was planned with: restore it, or give the run another name"
    require(sizes_now == sizes_then, f"{path}: {remedy}")


def planned_groups(run_dir: Path, data: DataConfig, warn: Callable[[str], None] = lambda line: None) -> list[RowGroup]:
    """Returns the row groups that the run trains: as its first start planned, or those of the shards as they are now.

    Args:
        warn: is called with a line on the files that are gone or damaged, as long as they are at most `data.max_reject_share`
            of a dataset. Until there is a checkpoint they are left out; later, their rows are rejected. It is called for files
            that came later too.

    Raises:
        ConfigError: more files are gone or damaged, or one differs from what was planned; see also `read_mix`.
    """
    share = data.max_reject_share
    with said_in_one_line(run_dir):
        kept = kept_plan(run_dir, data) if has_checkpoint(run_dir) else []
    if not kept:
        named = {"columns": data.columns, "warn_of_size": warn}
        return read_mix(data.train_weights, data.max_train_rows, share, lambda line: warn(f"{line}; left out"), **named)
    files: dict[str, list[RowGroup]] = {}
    for group in kept:
        files.setdefault(group.path, []).append(group)
    for dataset in data.train_weights:
        paths = [path for path, groups in files.items() if groups[0].dataset == dataset]
        left_out = lambda line: warn(f"{line}; rows will be rejected")  # noqa: E731
        for path, now in whole_footers(paths, share, left_out, dataset=dataset, columns=data.columns).items():
            _require_same(path, files[path], now, run_dir, data.max_train_rows)
        new_paths = [path for path in _whole_glob(dataset, data.max_train_rows) if path not in files]
        if new_paths:
            more = f" and {len(new_paths) - 1} more" * (len(new_paths) > 1)
            warn(f"{new_paths[0]}{more}: not in the run's plan, left out; a run of another name takes them in")
    return kept


def _whole_glob(dataset: str, max_rows: int | None) -> list[str]:
    """Lists what a glob matches now.

    The list is empty for a dataset by reference, whose files stay as they are, and for a run that takes only its first rows.
    """
    return [] if dataset_reference(dataset) or max_rows is not None else glob_files(dataset)
