"""Whole trainings, timed: their folders, their configs, and jobs that are submitted and waited for."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tiny_audio.config import TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import Inputs
from tiny_audio.lab.ray_cli import Cluster, submit_job

CONFIGS = Path("ray_jobs/configs")
ROWS_PER_GPU = 128  # in a step at true shapes: enough to fill the GPU


def clear_runs(config: BenchmarkConfig) -> Path:
    """Deletes the runs of earlier measurements, which runs of the same names would resume; returns the folder for new ones."""
    runs_dir = config.output_folder / "runs"
    shutil.rmtree(runs_dir, ignore_errors=True)
    return runs_dir


def timed_job(cluster: Cluster, config_name: str, runs_dir: Path, overrides: list[str]) -> tuple[TrainConfig, float, float]:
    """Trains by a job; returns the run's config, and the Unix times of its submission and its end."""
    overrides = [*overrides, f"runs_dir={runs_dir}", "max_failures=0"]
    submitted = time.time()
    submit_job(cluster, "python", "-m", "ray_jobs.train", str(CONFIGS / config_name), *overrides)
    return load_config(TrainConfig, CONFIGS / config_name, overrides), submitted, time.time()


def true_shapes_config(inputs: Inputs, runs_dir: Path, num_workers: int, changes: dict[str, object]) -> TrainConfig:
    """Returns the config of a training at 25 tokens of audio a second with a short validation, and with `changes`."""
    overrides = {
        "runs_dir": runs_dir,
        "num_workers": num_workers,
        "data.max_dev_rows": 8 * num_workers,
        "data.max_wer_rows": 0,
        "model.encoder_window": "trimmed",
        "optimizer.warmup_steps": 2,
        **changes,
    }
    lines = [f"{key}={value}" for key, value in overrides.items()]
    return load_config(TrainConfig, CONFIGS / "loquacious_small.yaml", [*inputs.overrides(), *lines])
