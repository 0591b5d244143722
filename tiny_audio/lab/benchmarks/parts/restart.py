"""A training at true shapes that loses a worker: how long it takes to train again, and how far its losses differ.

On CPUs losses are equal to the last bit (see chaos.py). GPUs add up in no fixed order, so the difference is measured here.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tiny_audio.config import TrainConfig
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import count_gpus, make_inputs
from tiny_audio.lab.benchmarks.runs import ROWS_PER_GPU, clear_runs, true_shapes_config
from tiny_audio.lab.local_nodes import kill, named_processes, wait_for
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.audit import audit
from tiny_audio.run.checkpoint import latest_checkpoint, load_progress
from tiny_audio.run.metrics import read_lines
from tiny_audio.training.driver import train

TRAIN_ROWS = 1024
NUM_STEPS, SAVE_EVERY, KILL_AFTER_STEP = 40, 10, 28
TIMEOUT_S = 600.0


def _losses(run_dir: Path) -> list[dict]:
    return [line for line in read_lines(run_dir) if "loss" in line]


def _kill_a_worker(run_dir: Path) -> dict:
    """Kills a worker after KILL_AFTER_STEP; returns when that was, and how far the run and its checkpoints were."""
    wait_for(lambda: len(_losses(run_dir)) >= KILL_AFTER_STEP, f"step {KILL_AFTER_STEP}", TIMEOUT_S)
    worker = named_processes(os.getpid(), TRAIN_WORKER)[0]
    saved = load_progress(latest_checkpoint(run_dir)).step
    killed = {"unix_time": time.time(), "saved_step": saved, "num_killed": kill([worker])}
    worker.wait(TIMEOUT_S)
    return killed | {"num_lines": len(_losses(run_dir))}


def measure(config: BenchmarkConfig) -> list[dict]:
    """Trains some epochs on all GPUs, and kills a worker in one of them; audits the ledger against the shards."""
    num_gpus, inputs = count_gpus(config), make_inputs(config, TRAIN_ROWS)
    intervals = {"checkpoint_every": SAVE_EVERY, "eval_every": NUM_STEPS, "log_every": 1}
    changes = {"name": "restart", "num_steps": NUM_STEPS, "data.batch_rows": num_gpus * ROWS_PER_GPU, "max_failures": 1}
    run = true_shapes_config(inputs, clear_runs(config), num_gpus, changes | intervals)
    with local_cluster(), ThreadPoolExecutor(1) as pool:
        killing = pool.submit(_kill_a_worker, run.run_dir)
        train(run)
    return [{"name": "a training worker killed", "num_gpus": num_gpus, **_figures(run, killing.result())}]


def _figures(run: TrainConfig, killed: dict) -> dict:
    lines, epochs = _losses(run.run_dir), audit(run)
    before, after = lines[: killed["num_lines"]], lines[killed["num_lines"] :]
    again = {line["step"]: line["loss"] for line in after}
    differences = [abs(line["loss"] / again[line["step"]] - 1) for line in before if line["step"] in again]
    return {
        "killed_workers": killed["num_killed"],
        "last_step": before[-1]["step"],
        "saved_step": killed["saved_step"],
        "steps_trained_again": len(differences),
        "back_s": after[0]["unix_time"] - killed["unix_time"],  # until the end of the first step
        "first_step_s": after[0]["time_s"] - before[killed["saved_step"] - 1]["time_s"],
        "s_per_step": (before[-1]["time_s"] - before[4]["time_s"]) / (len(before) - 5),
        "largest_relative_loss_difference": max(differences),
        "epochs": len(epochs),
        "rows": sum(epoch.num_rows for epoch in epochs),
        "rows_missing": sum(epoch.num_missing for epoch in epochs),
        "rows_twice": sum(epoch.num_twice for epoch in epochs),
        "losses": [round(line["loss"], 4) for line in (*before, *after)],
    }
