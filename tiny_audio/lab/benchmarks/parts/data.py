"""Measures how many steps a second the training stream gives its workers, and what a larger cluster would need.

This needs no GPU. The workers are threads of this process and only read; their rows are tiny, so that little but Ray is
measured.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.config import TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.stream import BLOCK_ROWS, WorkerStream, ingest_config, steps_per_block, train_dataset
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.noise import write_noise_shards
from tiny_audio.lab.benchmarks.parts.seed_job import decode_rate
from tiny_audio.lab.durations import MEAN_S
from tiny_audio.lab.local_nodes import named_processes
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.ray_names import DATA_SPLITTER

CONFIG = Path("ray_jobs/configs/loquacious_large.yaml")
STREAM = "the stream"
NUM_WORKERS = (1, 2, 4, 16, 64)
WINDOW_ROWS, TINY_S = 4096, 0.05  # tiny rows, one for each worker and step, so 64 workers have 64 steps a window
ONE_STEP = 1  # clips for a worker in a block: every step is then a block of its own
NUM_WORKER_STEPS = {ONE_STEP: 1500, BLOCK_ROWS: 30_000}  # number read in one measurement; about ten seconds on two cores
NUM_GPUS = (8, 64, 256)
GPU_ROWS_PER_S = 155  # speed of one H200 at 128 rows a step: ray_jobs/benchmarks/README.md, "A step"
NOISE_ROWS = 512  # rows of true durations: a window of seed.yaml


def measure(config: BenchmarkConfig) -> list[dict]:
    """Measures both layouts of blocks with every number of workers in turn, on a Ray of this process's own."""
    with tempfile.TemporaryDirectory() as folder, local_cluster():
        tiny = _plan(write_noise_shards(Path(folder, "tiny"), WINDOW_ROWS, seed=0, longest_s=TINY_S))
        rows = [stream_figures(tiny, number, size) for number in NUM_WORKERS for size in (ONE_STEP, BLOCK_ROWS)]
        noise = write_noise_shards(Path(folder, "noise"), NOISE_ROWS, seed=0)
        rows += [first_step_figures(replace(_plan(noise), steps_per_window=16), size) for size in (ONE_STEP, BLOCK_ROWS) * 4]
        decoding = {"name": "one core decodes", "rows_per_s": decode_rate(noise), "mb_per_row": _mb_per_row(noise)}
    blocks_per_s = max(row["worker_steps_per_s"] for row in rows if row["name"] == STREAM and row["steps_per_block"] == 1)
    return [*rows, decoding, *(row for number in NUM_GPUS for row in cluster_figures(number, decoding, blocks_per_s))]


def _plan(shards: str) -> TrainingPlan:
    config = load_config(TrainConfig, CONFIG, [f"data.train={shards}", "data.silence_share=0", "data.batch_rows=32"])
    return TrainingPlan.of(config, read_footers(list_shards(shards)), None)


def _mb_per_row(shards: str) -> float:
    return sum(Path(path).stat().st_size for path in list_shards(shards)) / NOISE_ROWS / 1e6


def make_streams(plan: TrainingPlan, num_steps: int, num_workers: int, block_rows: int) -> list[WorkerStream]:
    """Makes the workers' streams as Ray Train does."""
    datasets = {"train": partial(train_dataset, plan, range(num_steps), block_rows=block_rows)}
    shares = ingest_config(None).configure(datasets, num_workers, None, None)
    return [WorkerStream(share["train"], rank) for rank, share in enumerate(shares)]


def _coordinator_cpu_s() -> float:
    """Returns the CPU seconds of the process that deals the blocks out; an earlier one may not have ended yet."""
    newest = max(named_processes(os.getpid(), DATA_SPLITTER), key=lambda process: process.create_time())
    return sum(newest.cpu_times()[:2])


def _read(stream: WorkerStream, num_steps: int, num_first: int) -> tuple[float, float, float]:
    """Reads all steps; returns when those after the first few began and ended, and the coordinator's CPU time between."""
    for _ in range(num_first):
        next(stream)
    cpu_s = _coordinator_cpu_s() if stream.rank == 0 else 0.0
    began = time.perf_counter()
    for _ in range(num_first, num_steps):
        next(stream)
    ended = time.perf_counter()
    return began, ended, _coordinator_cpu_s() - cpu_s if stream.rank == 0 else 0.0


def stream_figures(plan: TrainingPlan, num_workers: int, block_rows: int) -> dict:
    """Reads a stream of one row a worker and step to its end, and leaves its beginning out of the figures."""
    plan = replace(plan, batch_rows=num_workers, steps_per_window=WINDOW_ROWS // num_workers)
    num_steps = NUM_WORKER_STEPS[block_rows] // num_workers
    num_first = min(plan.steps_per_window, num_steps // 4)
    gc.collect()  # ends the coordinator of the stream before
    streams = make_streams(plan, num_steps, num_workers, block_rows)
    with ThreadPoolExecutor(num_workers) as pool:
        began, ended, cpu_s = zip(*pool.map(lambda stream: _read(stream, num_steps, num_first), streams), strict=True)
    rate = (num_steps - num_first) / (max(ended) - min(began))
    return {
        "name": STREAM,
        "num_workers": num_workers,
        "steps_per_block": min(plan.steps_per_window, steps_per_block(plan.batch_rows, num_workers, block_rows)),
        "steps_per_s": rate,
        "worker_steps_per_s": rate * num_workers,
        "coordinator_cpu_ms_per_worker_step": 1000 * max(cpu_s) / (num_steps - num_first) / num_workers,
    }


def first_step_figures(plan: TrainingPlan, block_rows: int) -> dict:
    """Times how long one worker waits for the first step of a stream of clips of true durations."""
    gc.collect()
    started, num_steps = time.perf_counter(), NOISE_ROWS // plan.batch_rows
    (stream,) = make_streams(plan, num_steps, 1, block_rows)
    next(stream)
    first_step_s = time.perf_counter() - started
    for _ in range(1, num_steps):  # a task that still had steps to yield would keep its process from the next stream
        next(stream)
    return {"name": "the first step", "steps_per_block": steps_per_block(plan.batch_rows, 1, block_rows), "seconds": first_step_s}


def cluster_figures(num_gpus: int, decoding: dict, blocks_per_s: float) -> list[dict]:
    """Works out what training at full speed asks for: at loquacious_large's 512 rows a step, and at 32 rows a GPU and step."""
    rows_per_s = num_gpus * GPU_ROWS_PER_S
    needs = {
        "rows_per_s": rows_per_s,
        "decode_cores": rows_per_s / decoding["rows_per_s"],
        "storage_mb_per_s": rows_per_s * decoding["mb_per_row"],
    }
    steps_per_window = load_config(TrainConfig, CONFIG, []).data.steps_per_window
    figures = []
    for batch_rows in (512, 32 * num_gpus):
        steps = min(steps_per_window, steps_per_block(batch_rows, num_gpus))
        worker_steps_per_s = rows_per_s / batch_rows * num_gpus
        figures.append(
            {
                "name": f"{num_gpus} GPUs, {batch_rows} rows a step",
                **needs,
                "worker_steps_per_s": worker_steps_per_s,
                "steps_per_block": steps,
                "window_gb": batch_rows * steps_per_window * MEAN_S * SAMPLE_RATE * 2 / 1e9,  # what a decode task holds
                "share_of_the_coordinator": worker_steps_per_s / steps / blocks_per_s,
                "share_with_one_step_a_block": worker_steps_per_s / blocks_per_s,
            }
        )
    return figures
