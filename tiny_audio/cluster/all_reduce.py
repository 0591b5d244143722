"""Tries an all-reduce between workers placed like a training's, to see whether they meet and how fast gradients pass."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed

from tiny_audio.cluster.findings import Finding, fail, ok, warn
from tiny_audio.config import TrainConfig
from tiny_audio.training.places import worker_resources, worker_selector
from tiny_audio.training.process_group import listen_on_node_address

GRADIENT_BYTES = 4 * 11_730_944  # float32, of the real backbones' projector
NUM_REPEATS = 5
MEET_TIMEOUT_S = 90.0  # for the workers to find each other: NCCL takes some seconds a host
ROWS_PER_S = 155.0  # of one GPU: benchmarks/h200.json, step, bf16
WAIT_STEP_S = 10.0  # pause between two lines that say what is waited for
FAIR_SHARE = 0.1  # share of a step that its all-reduce may take before a warning


@ray.remote(max_restarts=0)
class _Reducer:
    """Runs as one worker of the trial, in the place of a training worker."""

    def address(self) -> str:
        """Returns an address for the workers to meet at: this node's IP, and a port that is free now."""
        ip = ray.util.get_node_ip_address()
        with socket.create_server((ip, 0)) as server:
            return f"tcp://{ip}:{server.getsockname()[1]}"

    def measure(self, rank: int, size: int, address: str) -> float:
        """Returns the seconds of one all-reduce of GRADIENT_BYTES, the least of a few; checks the sums too.

        Raises:
            RuntimeError: the workers do not meet, or a sum is wrong.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backend = "nccl" if device.type == "cuda" else "gloo"
        meet = timedelta(seconds=MEET_TIMEOUT_S)
        listen_on_node_address()
        distributed.init_process_group(backend, init_method=address, rank=rank, world_size=size, timeout=meet)
        try:
            return min(self._reduce(device, size) for _ in range(NUM_REPEATS))
        finally:
            distributed.destroy_process_group()

    def _reduce(self, device: torch.device, size: int) -> float:
        values = torch.ones(GRADIENT_BYTES // 4, device=device)
        distributed.barrier()
        start_s = time.perf_counter()
        distributed.all_reduce(values)
        total = float(values[-1])  # waits for the device
        seconds = time.perf_counter() - start_s
        if total != size:
            raise RuntimeError(f"an all-reduce of ones among {size} workers gave {total:g}")
        return seconds


def _place(config: TrainConfig, num_workers: int, timeout_s: float, say: Callable[[str], None]) -> PlacementGroup | None:
    """Asks for the workers' places, which makes an autoscaler start nodes; returns None if they don't come in time."""
    amounts, selector = worker_resources(config), worker_selector(config)
    (resource,) = amounts
    labels = [selector] * num_workers if selector else None
    places = placement_group([amounts] * num_workers, strategy="PACK", bundle_label_selector=labels)
    for _ in range(math.ceil(timeout_s / WAIT_STEP_S)):
        if places.wait(min(WAIT_STEP_S, timeout_s)):
            return places
        up = ray.cluster_resources().get(resource, 0)
        say(f"waiting for {num_workers} {resource}s, one a worker: {up:g} are up")
    remove_placement_group(places)
    return None


def _verdict(config: TrainConfig, num_workers: int, seconds: float) -> Finding:
    speed = 2 * (num_workers - 1) / num_workers * GRADIENT_BYTES / 1e9 / seconds  # GB/s, as NCCL's tests count the bus's
    detail = f"{num_workers} workers sum {GRADIENT_BYTES / 1e6:.0f} MB in {1000 * seconds:.1f} ms ({speed:.2g} GB/s)"
    step_s = config.data.batch_rows / num_workers / ROWS_PER_S
    if config.use_gpu and seconds > FAIR_SHARE * step_s:
        remedy = "check that NCCL takes the fast network (NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME); raise data.batch_rows"
        return warn("all-reduce", "cluster", f"{detail}: over a tenth of a step of about {1000 * step_s:.0f} ms", remedy)
    return ok("all-reduce", detail)


def check_all_reduce(config: TrainConfig, timeout_s: float, say: Callable[[str], None]) -> list[Finding]:
    """Starts as many workers as the training would and has them sum a projector's gradients.

    Args:
        timeout_s: how long to wait for their places; nodes may have to be started first.
    """
    num_workers = config.min_workers or config.num_workers
    (kind,) = worker_resources(config)
    places = _place(config, num_workers, timeout_s, say)
    if places is None:
        remedy = f"lower num_workers, add nodes, or raise the autoscaler's limit; in {timeout_s:g} s they had not come"
        detail = f"{num_workers} {kind}s are asked for, one a worker, and {ray.cluster_resources().get(kind, 0):g} are up"
        return [fail("workers", "cluster", detail, remedy)]
    placed = ok("workers", f"{num_workers} places, one {kind} each")
    if num_workers == 1:
        remove_placement_group(places)
        return [placed, ok("all-reduce", "one worker: none is needed")]
    say(f"{num_workers} workers sum {GRADIENT_BYTES / 1e6:.0f} MB")
    try:
        return [placed, _verdict(config, num_workers, _measure(config, places))]
    except (ray.exceptions.RayError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        remedy = "mend ports above first; then NCCL_DEBUG=INFO, or GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        return [placed, fail("all-reduce", "cluster", lines[-1] if lines else type(error).__name__, remedy)]
    finally:
        remove_placement_group(places)


def _measure(config: TrainConfig, places: PlacementGroup) -> float:
    """Returns the seconds that an all-reduce takes on the slowest worker."""
    size, amount = places.bundle_count, {"num_gpus": 1} if config.use_gpu else {"num_cpus": 1}
    strategies = [PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=rank) for rank in range(size)]
    workers = [_Reducer.options(scheduling_strategy=strategy, **amount).remote() for strategy in strategies]
    address = ray.get(workers[0].address.remote(), timeout=MEET_TIMEOUT_S)
    calls = [worker.measure.remote(rank, size, address) for rank, worker in enumerate(workers)]
    return max(ray.get(calls, timeout=2 * MEET_TIMEOUT_S))
