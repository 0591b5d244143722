"""Trainings on one GPU and on more, and at every ZeRO stage: how speed grows with the number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import Inputs, count_gpus, make_inputs
from tiny_audio.lab.benchmarks.runs import ROWS_PER_GPU, clear_runs, true_shapes_config
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.run.metrics import read_metrics
from tiny_audio.training.driver import train

TRAIN_ROWS = 4096
NUM_STEPS, WARMUP_STEPS = 24, 4


def measure(config: BenchmarkConfig) -> Iterator[dict]:
    """Trains with the same work per GPU on 1, 2, 4 and 8 GPUs, at every ZeRO stage on all; and with all that work on one."""
    num_gpus, inputs, runs_dir = count_gpus(config), make_inputs(config, TRAIN_ROWS), clear_runs(config)
    all_rows = num_gpus * ROWS_PER_GPU
    runs = [(count, 2, count * ROWS_PER_GPU) for count in (1, 2, 4, 8) if count <= num_gpus]
    runs += [(num_gpus, stage, all_rows) for stage in (3, 0, 1)] + [(1, 2, all_rows)]
    with local_cluster():
        for run in dict.fromkeys(runs):
            yield _run(inputs, runs_dir, *run)


def _run(inputs: Inputs, runs_dir: Path, num_workers: int, stage: int, batch_rows: int) -> dict:
    name = f"scale-{num_workers}-zero{stage}-{batch_rows}"
    changes = {"name": name, "zero_stage": stage, "data.batch_rows": batch_rows}
    changes |= {"max_failures": 0, "num_steps": NUM_STEPS, "log_every": 4}
    config = true_shapes_config(inputs, runs_dir, num_workers, changes)
    train(config)
    steps = [line for line in read_metrics(config.run_dir) if "loss" in line]
    steady = [line for line in steps if line["step"] > WARMUP_STEPS]

    def mean(key: str) -> float:
        return sum(line[key] for line in steady) / len(steady)

    return {
        "name": name,
        "num_gpus": num_workers,
        "zero_stage": stage,
        "batch_rows": batch_rows,
        "samples_per_s": mean("samples_per_s"),
        "audio_s_per_s": mean("audio_s_per_s"),  # to compare by: the clips of two steps differ in length
        "data_wait_share": mean("data_wait_share"),
        "peak_gib": steps[-1]["peak_gib"],
        "losses": [line["loss"] for line in steps],
    }
