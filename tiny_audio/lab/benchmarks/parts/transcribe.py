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
from tiny_audio.lab.load_test.clips import uploads
from tiny_audio.lab.load_test.config import LoadTestConfig
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.random_backbones import SMOLLM3_3B, WHISPER_LARGE_V3_TURBO
from tiny_audio.lab.ray_cli import Cluster
from tiny_audio.lab.serve_cli import serve_app
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.projectors import MLPProjector
from tiny_audio.model.saved import save_model

CLIENTS = [1, 32, 128]
WARM_UP_S, DURATION_S = 3.0, 6.0  # of each number of clients
ARGS = {"device": "cuda", "num_ingresses": 4}
JOB_ROWS, JOB_BATCH_ROWS = 4096, 64


def measure(config: BenchmarkConfig) -> list[dict]:
    """Runs all measurements on one GPU, in several minutes; prints each row as it comes.

    Raises:
        ConfigError: there is no GPU here.
    """
    count_gpus(config)
    folder = config.output_folder / "inputs/backbones"
    rows: list[dict] = []

    def keep(measured: Iterator[dict]) -> None:
        for row in measured:
            rows.append(row | gpu_facts())
            print(rows[-1], flush=True)

    keep(offline_rows(folder))
    gc.collect()
    torch.cuda.empty_cache()  # what follows runs in processes of its own
    offline = {row["name"].removeprefix("engine, "): row["audio_s_per_s"] for row in rows if "slots" in row}
    models = {"bf16, trimmed": model_config(folder, "trimmed"), "bf16, exact encoder": model_config(folder, "full")}
    keep(service_rows(models, offline, config.output_folder))
    return rows


def service_rows(models: dict[str, ASRConfig], offline: dict[str, float], folder: Path) -> Iterator[dict]:
    """Yields the speeds of the HTTP service and of a batch job with each model, and their shares of its `offline` speed."""
    shards = write_noise_shards(folder / "inputs/transcribe", JOB_ROWS, seed=0)
    with local_cluster() as cluster:
        for kind, config in models.items():
            model = folder / f"models/{kind.replace(', ', '-').replace(' ', '-')}"
            projector = MLPProjector(WHISPER_LARGE_V3_TURBO["d_model"], SMOLLM3_3B["hidden_size"])
            save_model(config, projector.state_dict(), None, model)
            for row in chain(_http_rows(cluster, model, kind), _job_rows(model, shards, kind)):
                yield row | {"share_of_offline": row["audio_s_per_s"] / offline[kind]}


def _http_rows(cluster: Cluster, model: Path, kind: str) -> Iterator[dict]:
    with serve_app(cluster, model, {"model": str(model), **ARGS}) as url:
        clips = {"made_of": "noise", "mean_s": MEAN_S, "longest_s": LONGEST_S}
        loads = {"clients": CLIENTS, "warm_up_s": WARM_UP_S, "duration_s": DURATION_S}
        config = LoadTestConfig(servers={f"{url}/v1": "tiny_audio"}, **loads, **clips)
        for row in load.measure(config, uploads(config)):
            yield {"name": f"HTTP, {kind}, {row['clients']} clients", **row, **ARGS}


def _job_rows(model: Path, shards: str, kind: str) -> Iterator[dict]:
    """Measures a job from its first answer to its last: before that, models load. What was in work by then does not count."""
    clips = clip_dataset(plan_pass(read_dataset(shards)), LONGEST_S)
    durations_s, started = [], 0.0
    for row in transcribed_rows(clips, TranscribeSettings(str(model), use_gpu=True, batch_rows=JOB_BATCH_ROWS)):
        started = started or time.perf_counter()
        durations_s.append(row["num_samples"] / SAMPLE_RATE)
    counted = durations_s[CALLS_AT_ONCE * JOB_BATCH_ROWS :]
    seconds = time.perf_counter() - started
    yield {"name": f"Ray Data, {kind}", "audio_s_per_s": sum(counted) / seconds, "num_clips": len(counted)}
