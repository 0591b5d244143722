"""Measures what is left of the engine's speed behind HTTP (Ray Serve) and in a batch job (Ray Data), on one GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.data.footers import read_dataset
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.stream import clip_dataset
from tiny_audio.inference.pool import TranscribeSettings, transcribed_rows
from tiny_audio.lab.benchmarks.http_load import load_row, upload
from tiny_audio.lab.benchmarks.noise import LONGEST_S, noise_clips, write_noise_shards
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.random_backbones import SMOLLM3_3B, WHISPER_LARGE_V3_TURBO
from tiny_audio.lab.ray_cli import Cluster
from tiny_audio.lab.serve_cli import serve_app
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.projectors import Projector
from tiny_audio.model.saved import save_projector

CLIENTS = {1: 30, 32: 320, 128: 1280}  # clients -> requests in all
WARM_UP_REQUESTS = 256
JOB_ROWS, JOB_FIRST_ROWS = 3072, 768  # of a batch job, and those at its start that do not count: the model loads meanwhile


def service_rows(config: ASRConfig, kind: str, offline: float, folder: Path) -> Iterator[dict]:
    """Yields the speeds of the HTTP service and of a batch job, with their shares of the engine's `offline` speed."""
    model = folder / "model"
    projector = Projector(WHISPER_LARGE_V3_TURBO["d_model"], SMOLLM3_3B["hidden_size"])
    save_projector(config, projector.state_dict(), model)
    shards = write_noise_shards(folder.parent / "inputs/transcribe", JOB_ROWS, seed=0)
    with local_cluster() as cluster:
        for row in (*_http_rows(cluster, folder, kind), _job_row(model, shards, kind)):
            yield row | {"share_of_offline": row["audio_s_per_s"] / offline}


def _http_rows(cluster: Cluster, folder: Path, kind: str) -> Iterator[dict]:
    uploads = [upload(clip.pcm) for clip in noise_clips(max(CLIENTS.values()), seed=3)]
    with serve_app(cluster, folder, {"model": str(folder / "model"), "device": "cuda", "max_batch_size": 128}) as url:
        load_row("warm-up", url, uploads[:WARM_UP_REQUESTS], max(CLIENTS))
        for num_clients, num_requests in CLIENTS.items():
            yield load_row(f"HTTP, {kind}, {num_clients} clients", url, uploads[:num_requests], num_clients)


def _job_row(model: Path, shards: str, kind: str) -> dict:
    clips = clip_dataset(plan_pass(read_dataset(shards)), LONGEST_S)
    arrived = []
    for row in transcribed_rows(clips, TranscribeSettings(str(model), use_gpu=True)):
        arrived.append((time.perf_counter(), row["num_samples"] / SAMPLE_RATE))
    counted = arrived[JOB_FIRST_ROWS:]
    seconds = counted[-1][0] - arrived[JOB_FIRST_ROWS - 1][0]
    audio_s = sum(duration_s for _, duration_s in counted)
    return {"name": f"Ray Data, {kind}", "audio_s_per_s": audio_s / seconds, "num_clips": len(counted)}
