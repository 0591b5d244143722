"""The HTTP service with a replica on each of 1, 2, 4 and 8 GPUs, behind one port: how its speed grows with them.

Serve's proxy is one process on a host, and has its limit; so it is measured again with HAProxy in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import count_gpus, gpu_facts
from tiny_audio.lab.benchmarks.served import SERVED, loads, served_model
from tiny_audio.lab.load_test import load
from tiny_audio.lab.load_test.clips import Upload, uploads
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.ray_cli import Cluster
from tiny_audio.lab.serve_cli import serve_app
from tiny_audio.ray_names import HAPROXY

CLIENTS_PER_REPLICA, INGRESSES_PER_REPLICA = 128, 8


def measure(config: BenchmarkConfig) -> Iterator[dict]:
    """Serves the same model with more and more replicas, and gives each as many clients; then again behind HAProxy.

    Raises:
        ConfigError: there is no GPU here, or no espeak-ng to make speech.
    """
    num_gpus = count_gpus(config)
    speech, model = uploads(loads("", [CLIENTS_PER_REPLICA])), served_model(config.output_folder)
    torch.cuda.empty_cache()  # what follows runs in processes of its own
    counts = [count for count in (1, 2, 4, 8) if count <= num_gpus]
    for balancer in ("proxy", "HAProxy"):
        with balanced_by(balancer), local_cluster() as cluster:
            for row in replica_rows(cluster, model, speech, "cuda", counts):
                yield row | {"balancer": balancer} | gpu_facts()


@contextmanager
def balanced_by(balancer: str) -> Iterator[None]:
    """Has Rays that start in this context take requests by Serve's proxy or by HAProxy.

    Serve's replicas take that from their node's environment; of the config's variables only controller and proxies know.
    """
    os.environ[HAPROXY] = str(int(balancer == "HAProxy"))
    try:
        yield
    finally:
        del os.environ[HAPROXY]


def replica_rows(cluster: Cluster, model: Path, speech: list[Upload], device: str, counts: list[int]) -> Iterator[dict]:
    """Yields the speed of the service for each number of replicas, and its share of as many times the first one's.

    Each replica's clients are a process of their own, for one could not send clips that fast.
    """
    alone = 0.0
    for count in counts:
        args = {"model": str(model), "device": device, "min_replicas": count, "max_replicas": count}
        args["num_ingresses"] = count * INGRESSES_PER_REPLICA
        environment = {"TINY_AUDIO_MAX_REQUESTS": str(2 * count * CLIENTS_PER_REPLICA)}
        with (
            serve_app(cluster, model, args, environment) as url,
            ProcessPoolExecutor(count, get_context("spawn")) as pool,
        ):
            rows = list(pool.map(partial(_load, url, speech), range(count)))
        audio_s_per_s = sum(row["audio_s_per_s"] for row in rows)
        alone = alone or audio_s_per_s / count
        yield {
            "name": f"HTTP, {SERVED}, {count} replicas",
            "audio_s_per_s": audio_s_per_s,
            "share_of_linear": audio_s_per_s / (count * alone),
            "clients": count * CLIENTS_PER_REPLICA,
            "outcomes": [row["outcomes"] for row in rows],
            "p95_ms": max(row["p95_ms"] for row in rows),
        }


def _load(url: str, speech: list[Upload], number: int) -> dict:
    """Puts a replica's load on the service, beginning with another clip than the other processes."""
    first = number * len(speech) // 8
    return next(load.measure(loads(url, [CLIENTS_PER_REPLICA]), speech[first:] + speech[:first]))
