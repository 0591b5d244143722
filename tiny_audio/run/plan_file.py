"""The row groups that a run trains, kept by its first start: a file that breaks or goes away later takes no row's place.

plan.parquet in a run's folder has a row for each. A start that goes on from a checkpoint takes them from there, and looks
whether the files are still those; what cannot be read any more is rejected when its turn comes, as within a start.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.config import TrainConfig, dataset_reference, require
from tiny_audio.data.footers import glob_files, read_mix, whole_footers
from tiny_audio.data.plan import RowGroup
from tiny_audio.run.checkpoint import has_checkpoint
from tiny_audio.storage import put, said_in_one_line

PLAN = "plan.parquet"
TYPES = {"path": pa.string(), "index": pa.int32(), "num_rows": pa.int64(), "dataset": pa.string(), "weight": pa.float64()}
PLANNED_FROM = b"planned_from"  # the settings that it follows from, in the file's metadata


def _settings(config: TrainConfig) -> bytes:
    weights = {name: float(weight) for name, weight in config.data.train_weights.items()}
    return json.dumps([weights, config.data.max_train_rows]).encode()


def keep_plan(config: TrainConfig, groups: list[RowGroup]) -> None:
    """Writes plan.parquet, unless it is there."""
    if kept_plan(config) == groups:
        return
    columns = {name: [getattr(group, name) for group in groups] for name in TYPES}
    data = io.BytesIO()
    pq.write_table(pa.table(columns, pa.schema(TYPES, metadata={PLANNED_FROM: _settings(config)})), data)
    with said_in_one_line(config.run_dir):
        put(config.run_dir / PLAN, data.getvalue())


def kept_plan(config: TrainConfig) -> list[RowGroup]:
    """What plan.parquet says; nothing for a new run, and for one whose settings for its data have changed."""
    with said_in_one_line(config.run_dir / PLAN):
        try:
            data = (config.run_dir / PLAN).read_bytes()
        except FileNotFoundError:
            return []
        table = pq.read_table(io.BytesIO(data))
    if table.schema.metadata[PLANNED_FROM] != _settings(config):
        return []
    return [RowGroup(**row) for row in table.to_pylist()]


def _require_same(path: str, then: list[RowGroup], now: list[RowGroup], config: TrainConfig) -> None:
    """`max_train_rows` may have cut off the last ones, and a part of the last of those that are left."""
    sizes_then, sizes_now = ([(group.index, group.num_rows) for group in groups if group.num_rows] for groups in (then, now))
    if config.data.max_train_rows is not None:
        sizes_now = sizes_now[: len(then)]
        if sizes_now and sizes_now[-1] > sizes_then[-1]:
            sizes_now[-1] = sizes_then[-1]
    remedy = f"its row groups are not those that {config.run_dir} was planned with: restore it, or give the run another name"
    require(sizes_now == sizes_then, f"{path}: {remedy}")


def planned_groups(config: TrainConfig, warn: Callable[[str], None] = lambda line: None) -> list[RowGroup]:
    """The row groups that the run trains: as its first start planned, or those of the shards as they are.

    Args:
        warn: is told of the files that are gone or damaged, as long as they are at most `data.max_reject_share` of a dataset.
            Until there is a checkpoint they are left out; later, their rows are rejected. And of files that came later.

    Raises:
        ConfigError: more files are, or one is another than it was; see also `read_mix`.
    """
    share = config.data.max_reject_share
    with said_in_one_line(config.run_dir):
        kept = kept_plan(config) if has_checkpoint(config.run_dir) else []
    if not kept:
        return read_mix(config.data.train_weights, config.data.max_train_rows, share, lambda line: warn(f"{line}; left out"))
    files: dict[str, list[RowGroup]] = {}
    for group in kept:
        files.setdefault(group.path, []).append(group)
    for dataset in config.data.train_weights:
        paths = [path for path, groups in files.items() if groups[0].dataset == dataset]
        for path, now in whole_footers(paths, share, lambda line: warn(f"{line}; rows will be rejected")).items():
            _require_same(path, files[path], now, config)
        came = [path for path in _whole_glob(dataset, config) if path not in files]
        if came:
            more = f" and {len(came) - 1} more" * (len(came) > 1)
            warn(f"{came[0]}{more}: not in the run's plan, left out; a run of another name takes them in")
    return kept


def _whole_glob(dataset: str, config: TrainConfig) -> list[str]:
    """What a glob has now; nothing of a dataset by reference, which stays as it is, and where a run takes a part only."""
    return [] if dataset_reference(dataset) or config.data.max_train_rows is not None else glob_files(dataset)
