"""The seed's job on one GPU, from its submission to its model: how long it takes, and how much of that is the start."""

from __future__ import annotations

import time

from tiny_audio.data.batch import window_batches
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.plan import Window, plan_pass
from tiny_audio.data.shards import decode_slices
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import make_inputs
from tiny_audio.lab.benchmarks.runs import clear_runs, timed_job
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.run.metrics import read_metrics

TRAIN_ROWS = 1000


def measure(config: BenchmarkConfig) -> list[dict]:
    """Trains as seed.yaml says, on a Ray of this process's own; reads the times off the run's metrics."""
    inputs = make_inputs(config, TRAIN_ROWS)
    with local_cluster() as cluster:
        run, submitted, ended = timed_job(cluster, "seed.yaml", clear_runs(config), [*inputs.overrides(), "name=seed"])
    lines = read_metrics(run.run_dir)
    steps = [line for line in lines if "loss" in line]
    began = steps[0]["unix_time"] - steps[0]["time_s"]
    rates = [line["samples_per_s"] for line in steps[1:]]
    row = {
        "name": "seed.yaml",
        "startup_s": began - submitted,
        "training_s": ended - began,
        "in_steps_s": steps[-1]["time_s"],
        "total_s": ended - submitted,
        "samples_per_s": sum(rates) / len(rates),
        "data_wait_share": sum(line["data_wait_share"] for line in steps[1:]) / len(rates),
        "peak_gib": steps[-1]["peak_gib"],
        "num_evaluations": sum("val_loss" in line for line in lines) - 1,
        "decode_rows_per_s_and_core": decode_rate(inputs.dev),
    }
    return [row]


def decode_rate(shards: str) -> float:
    """Returns the rows a second that one CPU core decodes and lays out for the workers: it gives the number of decode nodes."""
    slices = list(plan_pass(read_footers(list_shards(shards))))
    started = time.perf_counter()
    rows = decode_slices(slices, 30.0)
    window_batches(Window(0, 0, 0, max(1, len(rows) // 32), tuple(slices)), rows, seed=0, num_workers=1)
    return len(rows) / (time.perf_counter() - started)
