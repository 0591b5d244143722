"""A long training on this machine's CPUs, watched: does memory stay flat, and the object store bounded? Needs no GPU.

Decoding is some thirty times as fast as training here, and the epochs follow one another: without back-pressure their clips
would fill the object store within minutes, and spill.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from tiny_audio.lab.benchmarks.runs import CONFIGS, write_noise_shards
from tiny_audio.lab.local_nodes import named_processes
from tiny_audio.lab.local_ray import BIN, WITH_TOKEN, Cluster
from tiny_audio.ray_names import DATA_SPLITTER, SPILLED_MIB, STORE_USED_MIB, TRAIN_CONTROLLER, TRAIN_WORKER
from tiny_audio.run.metrics import read_metrics

LONGEST_S = 7.5  # the embedded encoder hears 8 s
SPLITS = (("train", 8192, 0), ("dev", 64, 1000))  # name, rows (of train 1.4 GB of samples), seed
SAMPLE_EVERY_S = 15.0
SETTLED_AFTER_S = 900.0  # from then on memory should not grow: heaps have met the longest steps, caches are full
ROLES = {  # what processes have in their names
    "workers": TRAIN_WORKER,
    "driver": "ray_jobs.train",
    "controller": TRAIN_CONTROLLER,
    "data": DATA_SPLITTER,
    "all": "",
}


def anonymous_mib(processes: list[psutil.Process]) -> float:
    """Memory of processes' own: without the object store, which all share, and without files."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # gone meanwhile
            memory = process.memory_info()
            total += memory.rss - memory.shared
    return total / 2**20


def memory_sample(cluster: Cluster) -> dict[str, float]:
    """Memory now, in MiB: of each of ROLES, of all of this Ray's processes, in the object store, and spilled from it."""
    sample = {role: anonymous_mib(named_processes(os.getpid(), part)) for role, part in ROLES.items()}
    command = [str(BIN / "ray"), "memory", "--stats-only", "--address", cluster.gcs_address]
    said = subprocess.run(command, env={**os.environ, **WITH_TOKEN}, capture_output=True, text=True, check=True).stdout
    used, spilled = (re.search(pattern, said) for pattern in (STORE_USED_MIB, SPILLED_MIB))
    return {**sample, "store": float(used[1]) if used else 0.0, "spilled": float(spilled[1]) if spilled else 0.0}


def soak(cluster: Cluster, folder: Path, minutes: float) -> list[dict]:
    """Trains for some minutes; returns a sample a minute, and over all: the growth an hour and the object store's most."""
    data = {split: write_noise_shards(folder / split, rows, seed, LONGEST_S) for split, rows, seed in SPLITS}
    overrides = [f"data.{split}={pattern}" for split, pattern in data.items()]
    overrides += ["name=soak", f"runs_dir={folder / 'runs'}", "num_steps=20000", "eval_every=200", "checkpoint_every=100"]
    command = [sys.executable, "-m", "ray_jobs.train", str(CONFIGS / "quickstart.yaml"), *overrides]
    environment = {**os.environ, **WITH_TOKEN, "RAY_ADDRESS": cluster.gcs_address}
    with (folder / "soak.log").open("w") as log:
        training = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            samples = _watch(cluster, training, minutes * 60)
        finally:
            training.kill()
            training.wait()
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


def _watch(cluster: Cluster, training: subprocess.Popen, seconds: float) -> list[dict]:
    samples, started = [], time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        if training.poll() is not None:
            raise RuntimeError("the training ended before its time; soak.log says why")
        samples.append({"seconds": round(passed), **memory_sample(cluster)})
        time.sleep(SAMPLE_EVERY_S)
    return samples
