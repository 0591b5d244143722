"""A training at true shapes of which a worker is killed: how long until it trains again, and with the same losses?

On CPUs losses are the same to the last bit (see chaos.py). GPUs add up in no fixed order, so here the difference is measured.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tiny_audio.lab.benchmarks.runs import ROWS_PER_GPU, Inputs, true_shapes_config
from tiny_audio.lab.local_nodes import kill, named_processes, wait_for
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.audit import audit
from tiny_audio.run.checkpoint import latest_checkpoint, load_progress
from tiny_audio.run.metrics import read_lines
from tiny_audio.training.driver import train

NUM_STEPS, SAVE_EVERY, KILLED_AFTER = 40, 10, 28
TIMEOUT_S = 600.0


def _losses(run_dir: Path) -> list[dict]:
    return [line for line in read_lines(run_dir) if "loss" in line]


def _kill_a_worker(run_dir: Path) -> dict:
    """One of them, in the step after KILLED_AFTER; returns when that was, and how far the run and its checkpoints were."""
    wait_for(lambda: len(_losses(run_dir)) >= KILLED_AFTER, f"step {KILLED_AFTER}", TIMEOUT_S)
    worker = named_processes(os.getpid(), TRAIN_WORKER)[0]
    saved = load_progress(latest_checkpoint(run_dir)).step
    killed = {"unix_time": time.time(), "saved_step": saved, "num_killed": kill([worker])}
    worker.wait(TIMEOUT_S)
    return killed | {"num_lines": len(_losses(run_dir))}


def restart(inputs: Inputs, runs_dir: Path, num_gpus: int) -> list[dict]:
    """Trains some epochs on all GPUs, a worker killed in one of them; holds the ledger against the shards."""
    intervals = {"checkpoint_every": SAVE_EVERY, "eval_every": NUM_STEPS, "log_every": 1}
    changes = {"name": "restart", "num_steps": NUM_STEPS, "data.batch_rows": num_gpus * ROWS_PER_GPU, "max_failures": 1}
    config = true_shapes_config(inputs, runs_dir, num_gpus, changes | intervals)
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(_kill_a_worker, config.run_dir)
        train(config)
    killed, lines, epochs = killing.result(), _losses(config.run_dir), audit(config)
    before, after = lines[: killed["num_lines"]], lines[killed["num_lines"] :]
    again = {line["step"]: line["loss"] for line in after}
    twice = [abs(line["loss"] / again[line["step"]] - 1) for line in before if line["step"] in again]
    row = {
        "name": "a training worker killed",
        "num_gpus": num_gpus,
        "killed_workers": killed["num_killed"],
        "last_step": before[-1]["step"],
        "saved_step": killed["saved_step"],
        "steps_trained_again": len(twice),
        "back_s": after[0]["unix_time"] - killed["unix_time"],  # at the end of the first step
        "first_step_s": after[0]["time_s"] - before[killed["saved_step"] - 1]["time_s"],
        "s_per_step": (before[-1]["time_s"] - before[4]["time_s"]) / (len(before) - 5),
        "largest_relative_loss_difference": max(twice),
        "epochs": len(epochs),
        "rows": sum(epoch.num_rows for epoch in epochs),
        "rows_missing": sum(epoch.num_missing for epoch in epochs),
        "rows_twice": sum(epoch.num_twice for epoch in epochs),
        "losses": [round(line["loss"], 4) for line in (*before, *after)],
    }
    return [row]
