"""The HTTP service with a replica on each of 1, 2, 4 and 8 GPUs, behind one port: how its speed grows with them.

A proxy is one process, and has its limit; so each number of replicas is measured behind one proxy, and behind as many.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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

CLIENTS_PER_REPLICA, INGRESSES_PER_REPLICA = 128, 8


def measure(config: BenchmarkConfig) -> Iterator[dict]:
    """Serves the same model with more and more replicas, and gives each as many clients.

    Raises:
        ConfigError: there is no GPU here, or no espeak-ng to make speech.
    """
    num_gpus = count_gpus(config)
    speech, model = uploads(loads("", [CLIENTS_PER_REPLICA])), served_model(config.output_folder)
    torch.cuda.empty_cache()  # what follows runs in processes of its own
    counts = [count for count in (1, 2, 4, 8) if count <= num_gpus]
    with local_cluster() as cluster:
        for row in replica_rows(cluster, model, speech, "cuda", counts):
            yield row | gpu_facts()


def replica_rows(cluster: Cluster, model: Path, speech: list[Upload], device: str, counts: list[int]) -> Iterator[dict]:
    """Yields the speed of the service for each number of replicas and proxies, and its share of as many times the first one's.

    Each replica's clients are a process of their own, for one could not send clips that fast.
    """
    alone = 0.0
    for num_replicas, num_proxies in [(count, proxies) for count in counts for proxies in sorted({1, count})]:
        args = {"model": str(model), "device": device, "min_replicas": num_replicas, "max_replicas": num_replicas}
        args["num_ingresses"] = num_replicas * INGRESSES_PER_REPLICA
        num_clients = num_replicas * CLIENTS_PER_REPLICA
        environment = {"TINY_AUDIO_NUM_PROXIES": str(num_proxies), "TINY_AUDIO_MAX_REQUESTS": str(2 * num_clients)}
        with (
            serve_app(cluster, model, args, environment) as url,
            ProcessPoolExecutor(num_replicas, get_context("spawn")) as pool,
        ):
            rows = list(pool.map(partial(_load, url, speech), range(num_replicas)))
        audio_s_per_s = sum(row["audio_s_per_s"] for row in rows)
        alone = alone or audio_s_per_s / num_replicas
        yield {
            "name": f"HTTP, {SERVED}, {num_replicas} replicas, {num_proxies} proxies",
            "audio_s_per_s": audio_s_per_s,
            "share_of_linear": audio_s_per_s / (num_replicas * alone),
            "clients": num_clients,
            "outcomes": [row["outcomes"] for row in rows],
            "p95_ms": max(row["p95_ms"] for row in rows),
        }


def _load(url: str, speech: list[Upload], number: int) -> dict:
    """Puts a replica's load on the service, beginning with another clip than the other processes."""
    first = number * len(speech) // 8
    return next(load.measure(loads(url, [CLIENTS_PER_REPLICA]), speech[first:] + speech[:first]))
