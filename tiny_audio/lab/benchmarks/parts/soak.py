"""A long training on this machine's CPUs, watched: whether memory stays flat, and the object store bounded.

Decoding is some thirty times as fast as training here, and the epochs follow one another: without back-pressure their clips
would fill the object store within minutes, and spill.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.noise import write_noise_shards
from tiny_audio.lab.benchmarks.runs import CONFIGS
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.process_memory import memory_sample
from tiny_audio.lab.process_names import TRAIN_DRIVER
from tiny_audio.lab.ray_cli import WITH_TOKEN, Cluster
from tiny_audio.run.metrics import read_metrics

LONGEST_S = 7.5  # the window of the embedded encoder is 8 s
SPLITS = (("train", 8192, 0), ("dev", 64, 1000))  # name, rows (of train 1.4 GB of samples), seed
SAMPLE_EVERY_S = 15.0
SETTLED_AFTER_S = 900.0  # from then on memory should not grow: the longest steps have been met, and caches are full


def measure(config: BenchmarkConfig) -> list[dict]:
    """Trains for `soak_minutes`; returns a sample a minute, then the growth an hour and the most in the object store."""
    folder = config.output_folder / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    with local_cluster() as cluster:
        samples = _train_and_watch(cluster, folder, config.soak_minutes * 60)
    steps = [line for line in read_metrics(folder / "runs/soak") if "loss" in line]
    settled = [sample for sample in samples if sample["seconds"] > SETTLED_AFTER_S]
    hours, mib = [sample["seconds"] / 3600 for sample in settled], [sample["all"] for sample in settled]
    summary = {
        "name": "over all",
        "steps": steps[-1]["step"],
        "rows_per_s": float(np.mean([line["samples_per_s"] for line in steps[1:]])),
        "growth_mib_per_hour": float(np.polyfit(hours, mib, 1)[0]) if len(settled) > 8 else None,
        "most_in_store_mib": max(sample["store"] for sample in samples),
        "spilled_mib": samples[-1]["spilled"],
    }
    return [*samples[:: max(1, round(60 / SAMPLE_EVERY_S))], summary]


def _train_and_watch(cluster: Cluster, folder: Path, seconds: float) -> list[dict]:
    data = {split: write_noise_shards(folder / split, rows, seed, LONGEST_S) for split, rows, seed in SPLITS}
    overrides = [f"data.{split}={pattern}" for split, pattern in data.items()]
    overrides += ["name=soak", f"runs_dir={folder / 'runs'}", "num_steps=20000", "eval_every=200", "checkpoint_every=100"]
    command = [sys.executable, "-m", TRAIN_DRIVER, str(CONFIGS / "quickstart.yaml"), *overrides]
    environment = {**os.environ, **WITH_TOKEN, "RAY_ADDRESS": cluster.gcs_address}
    with (folder / "soak.log").open("w") as log:
        training = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            return _watch(cluster, training, seconds)
        finally:
            training.kill()
            training.wait()


def _watch(cluster: Cluster, training: subprocess.Popen, seconds: float) -> list[dict]:
    samples, started = [], time.monotonic()
    while (elapsed_s := time.monotonic() - started) < seconds:
        if training.poll() is not None:
            raise RuntimeError("the training ended before its time; soak.log says why")
        samples.append({"seconds": round(elapsed_s), **memory_sample(cluster)})
        time.sleep(SAMPLE_EVERY_S)
    return samples
