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
from tiny_audio.lab.benchmarks.engine_speed import model_config, offline_rows
from tiny_audio.lab.benchmarks.inputs import count_gpus, gpu_facts
from tiny_audio.lab.benchmarks.noise import write_noise_shards
from tiny_audio.lab.durations import LONGEST_S, MEAN_S
from tiny_audio.lab.load_test import load
from tiny_audio.lab.load_test.clips import Upload, uploads
from tiny_audio.lab.load_test.config import LoadTestConfig
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.random_backbones import SMOLLM3_3B, WHISPER_LARGE_V3_TURBO
from tiny_audio.lab.ray_cli import Cluster
from tiny_audio.lab.serve_cli import serve_app
from tiny_audio.model.projectors import MLPProjector
from tiny_audio.model.saved import save_model

SERVED = "bf16, trimmed"  # the engine that is measured behind HTTP and in a job
CLIENTS = [1, 32, 128]
WARM_UP_S, DURATION_S = 3.0, 15.0  # of each number of clients
ARGS = {"num_ingresses": 8}
JOB_ROWS, JOB_BATCH_ROWS = 4096, 64


def measure(config: BenchmarkConfig) -> list[dict]:
    """Runs all measurements on one GPU, in several minutes; prints each row as it comes.

    Raises:
        ConfigError: there is no GPU here, or no espeak-ng to make speech.
    """
    count_gpus(config)
    folder = config.output_folder
    speech = uploads(loads("", CLIENTS))  # the service gives the model no noise
    rows: list[dict] = []

    def keep(measured: Iterator[dict]) -> None:
        for row in measured:
            rows.append(row | gpu_facts())
            print(rows[-1], flush=True)

    keep(offline_rows(folder / "inputs/backbones"))
    gc.collect()
    torch.cuda.empty_cache()  # what follows runs in processes of its own
    offline = next(row["audio_s_per_s"] for row in rows if row["name"] == f"engine, {SERVED}")
    model = served_model(folder)
    shards = write_noise_shards(folder / "inputs/transcribe", JOB_ROWS, seed=0)
    with local_cluster() as cluster:
        served = chain(http_rows(cluster, model, speech, "cuda"), job_rows(model, shards, use_gpu=True))
        keep(row | {"share_of_offline": row["audio_s_per_s"] / offline} for row in served)
    return rows


def loads(url: str, clients: list[int]) -> LoadTestConfig:
    """Returns the loads of so many clients, who send clips of LoquaciousSet's durations."""
    times = {"warm_up_s": WARM_UP_S, "duration_s": DURATION_S}
    return LoadTestConfig(servers={f"{url}/v1": "tiny_audio"}, clients=clients, mean_s=MEAN_S, longest_s=LONGEST_S, **times)


def served_model(folder: Path) -> Path:
    """Writes a model of true shapes with random weights, which the service can load; returns its folder."""
    model = folder / "models/trimmed"
    projector = MLPProjector(WHISPER_LARGE_V3_TURBO["d_model"], SMOLLM3_3B["hidden_size"])
    save_model(model_config(folder / "inputs/backbones", "trimmed"), projector.state_dict(), None, model)
    return model


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
