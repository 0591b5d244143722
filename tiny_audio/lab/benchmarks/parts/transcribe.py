"""Measures transcription on one GPU: offline, and what is left of that speed behind HTTP (Ray Serve) and in a job (Ray Data)."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.data.footers import read_dataset
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.stream import clip_dataset
from tiny_audio.inference.pool import CALLS_AT_ONCE, TranscribeSettings, transcribed_rows
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.engine_speed import offline_rows
from tiny_audio.lab.benchmarks.inputs import count_gpus, gpu_facts
from tiny_audio.lab.benchmarks.noise import write_noise_shards
from tiny_audio.lab.benchmarks.served import SERVED, loads, served_model
from tiny_audio.lab.durations import LONGEST_S
from tiny_audio.lab.load_test import load
from tiny_audio.lab.load_test.clips import Upload, uploads
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.ray_cli import Cluster
from tiny_audio.lab.serve_cli import serve_app

CLIENTS = [1, 32, 128]
ARGS = {"num_ingresses": 8}
JOB_ROWS, JOB_BATCH_ROWS = 4096, 64


def measure(config: BenchmarkConfig) -> Iterator[dict]:
    """Runs all measurements on one GPU, in several minutes.

    Raises:
        ConfigError: there is no GPU here, or no espeak-ng to make speech.
    """
    count_gpus(config)
    folder = config.output_folder
    speech = uploads(loads("", CLIENTS))  # the service gives the model no noise
    audio_s_per_s = {}
    for row in offline_rows(folder / "inputs/backbones"):
        audio_s_per_s[row["name"]] = row.get("audio_s_per_s")
        yield row | gpu_facts()
    offline = audio_s_per_s[f"engine, {SERVED}"]
    gc.collect()
    torch.cuda.empty_cache()  # what follows runs in processes of its own
    model = served_model(folder)
    shards = write_noise_shards(folder / "inputs/transcribe", JOB_ROWS, seed=0)
    with local_cluster() as cluster:
        for row in chain(http_rows(cluster, model, speech, "cuda"), job_rows(model, shards, use_gpu=True)):
            yield row | {"share_of_offline": row["audio_s_per_s"] / offline} | gpu_facts()


def http_rows(cluster: Cluster, model: Path, speech: list[Upload], device: str) -> Iterator[dict]:
    """Yields the speed and the latencies of the HTTP service, for each number of clients."""
    with serve_app(cluster, model, {"model": str(model), "device": device, **ARGS}) as url:
        for row in load.measure(loads(url, CLIENTS), speech):
            yield {"name": f"HTTP, {SERVED}, {row['clients']} clients", **row, **ARGS}


def job_rows(model: Path, shards: str, use_gpu: bool) -> Iterator[dict]:
    """Measures a job from its first answer to its last: before that, models load. What was in work by then does not count."""
    clips = clip_dataset(plan_pass(read_dataset(shards)), LONGEST_S)
    durations_s, started = [], 0.0
    for row in transcribed_rows(clips, TranscribeSettings(str(model), use_gpu=use_gpu, batch_rows=JOB_BATCH_ROWS)):
        started = started or time.perf_counter()
        durations_s.append(row["num_samples"] / SAMPLE_RATE)
    counted = durations_s[CALLS_AT_ONCE * JOB_BATCH_ROWS :]
    seconds = time.perf_counter() - started
    yield {"name": f"Ray Data, {SERVED}", "audio_s_per_s": sum(counted) / seconds, "num_clips": len(counted)}
