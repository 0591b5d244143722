"""How long planning and resuming take at the size of LoquaciousSet large, and what they hold in memory. Needs no GPU.

The plan is of files that do not exist: it is made of their footers' row counts alone. Reading real footers is a figure of
its own, over small local files; over a network it is the network that counts.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.checkpoint import Progress, plan_identity, state_bytes
from tiny_audio.config import TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.plan import RowGroup, list_shards, plan_windows, read_footers, steps_per_epoch
from tiny_audio.stream import StreamSettings, window_dataset

CONFIG = Path("ray_jobs/configs/loquacious_large.yaml")
LEFT_STEPS = 8  # of the epoch, where the run is resumed


@dataclass(frozen=True)
class PlanSize:
    """Of the data that are planned; by default, about those of LoquaciousSet large."""

    num_files: int = 1000
    groups_per_file: int = 100
    rows_per_group: int = 100
    num_footers: int = 300  # files that are written, to read their footers


def peak_rss_mib() -> float:
    """Of this process, since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def rss_mib() -> float:
    """Of this process, now."""
    return psutil.Process().memory_info().rss / 2**20


def absent_groups(size: PlanSize) -> list[RowGroup]:
    """Row groups as footers would give them, of files that are not there."""
    paths = [f"/absent/large/train-{number:05d}-of-{size.num_files:05d}.parquet" for number in range(size.num_files)]
    return [RowGroup(path, i, size.rows_per_group) for path in paths for i in range(size.groups_per_file)]


def footer_figures(folder: Path, size: PlanSize) -> dict:
    """Writes small shards with as many row groups as large ones, and reads their footers."""
    wav = {"bytes": b"RIFF", "path": "a.wav"}
    table = pa.Table.from_pylist([{"ID": f"row-{i}", "wav": wav, "text": "a"} for i in range(size.groups_per_file)])
    for number in range(size.num_footers):
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=1)
    started = time.perf_counter()
    groups = read_footers(list_shards(f"{folder}/*.parquet"))
    seconds = time.perf_counter() - started
    figures = {"name": "footers read", "num_files": size.num_footers, "num_row_groups": len(groups), "seconds": seconds}
    return {**figures, "s_per_1000_files": 1000 * seconds / size.num_footers}


def resume_figures(config: TrainConfig, groups: list[RowGroup]) -> list[dict]:
    """From the list of row groups to the first window of a run that goes on near the end of an epoch; its checkpoint's size."""
    data = config.data
    per_epoch = steps_per_epoch(groups, data.batch_rows)
    start_step = per_epoch - LEFT_STEPS
    plan = partial(plan_windows, groups, config.seed, data.batch_rows, data.steps_per_window)
    started = time.perf_counter()
    identity = plan_identity(config, groups)
    compared = time.perf_counter()
    first = next(plan(num_steps=per_epoch, start_step=start_step))
    planned = time.perf_counter()
    windows = list(plan(num_steps=per_epoch))
    listed = time.perf_counter()
    state = state_bytes(Progress(step=start_step, num_rows=start_step * data.batch_rows, plan=identity))
    resumed = {
        "name": "resumed near the end of an epoch",
        "num_rows": sum(group.num_rows for group in groups),
        "num_row_groups": len(groups),
        "num_files": len({group.path for group in groups}),
        "step": start_step,
        "num_steps": per_epoch,
        "identity_s": compared - started,
        "first_window_s": planned - compared,
        "same_as_from_the_start": first in windows,
    }
    whole = {"name": "all windows of the epoch", "num_windows": len(windows), "seconds": listed - planned}
    kept = {"name": "position in a checkpoint", "step": json.loads(state)["step"], "state_json_bytes": len(state)}
    return [resumed, whole, kept]


def stream_figures(config: TrainConfig, groups: list[RowGroup], num_epochs: int) -> dict:
    """The same through Ray Data, near the end of the first of some epochs: the dataset made, and its first window planned."""
    data = config.data
    per_epoch = steps_per_epoch(groups, data.batch_rows)
    start_step, num_steps = per_epoch - LEFT_STEPS, num_epochs * per_epoch
    settings = StreamSettings(config.seed, start_step, num_steps, data.max_duration_s, data.silence_share)
    started = time.perf_counter()
    windows = window_dataset(partial(plan_windows, groups, config.seed, data.batch_rows, data.steps_per_window), settings)
    made = time.perf_counter()
    row = next(iter(windows.iter_rows()))
    window = json.loads(row["window"])
    figures = {"name": f"through Ray Data, epochs: {num_epochs}", "num_steps": num_steps, "first_step": window["first_step"]}
    return {**figures, "dataset_s": made - started, "first_window_s": time.perf_counter() - started}


def plan_figures(size: PlanSize) -> list[dict]:
    """All of them, with this process's memory. Needs a Ray that is up."""
    config = load_config(TrainConfig, CONFIG, [])
    with tempfile.TemporaryDirectory() as folder:
        rows = [footer_figures(Path(folder), size)]
    before_mib = rss_mib()
    groups = absent_groups(size)
    rows += resume_figures(config, groups)
    rows += [stream_figures(config, groups, num_epochs) for num_epochs in (1, 10)]
    return [*rows, {"name": "memory of the driver", "before_mib": before_mib, "after_mib": rss_mib(), "peak_mib": peak_rss_mib()}]
