"""Runs one actor on every node of a Ray cluster, including the head, and puts their answers together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tiny_audio.cluster import node
from tiny_audio.cluster.node import NodeFacts
from tiny_audio.config import ConfigError, storage_path
from tiny_audio.storage import remove_folder, said_in_one_line
from tiny_audio.training.places import Offer, node_names

ANSWER_TIMEOUT_S = 120.0  # a node that is fetching its first imports over a network disk takes half a minute
CLOCK_SAMPLES = 5  # tries, of which the fastest round trip counts


@dataclass(frozen=True)
class Node(Offer):
    """Holds a live node as Ray lists it and as it describes itself.

    `reads_and_writes` is (MB/s written, MB/s read); `problems` are those of storage; `unreachable` maps another node's
    name to why no connection to it came about; `clock_offset_s` says how far the clock is ahead of the driver's.
    """

    ip: str
    is_head: bool
    facts: NodeFacts
    clock_offset_s: float = 0.0
    reads_and_writes: tuple[float, float] = (0.0, 0.0)
    storage_problem: str = ""
    unreachable: dict[str, str] | None = None


@ray.remote(num_cpus=0)
class _Probe:
    def facts(self, model_ids: list[str]) -> NodeFacts:
        return node.node_facts(model_ids, ray.get_runtime_context().get_temp_dir())

    def clock_s(self) -> float:
        return time.time()

    def listen(self, ip: str) -> int:
        return node.listen(ip)

    def unreachable(self, addresses: dict[str, tuple[str, int]]) -> dict[str, str]:
        return node.unreachable(addresses)

    def write(self, path: str) -> tuple[float, str]:
        return node.write_payload(storage_path(path))

    def read(self, path: str) -> tuple[float, str]:
        return node.read_payload(storage_path(path))


class NoAnswer(RuntimeError):
    """Says in its message which node that Ray lists does not answer."""


def _gather(calls: dict[str, ray.ObjectRef], timeout_s: float | None = None) -> dict[str, Any]:
    """Collects what the nodes answer, by their names."""
    timeout_s, answers = timeout_s or ANSWER_TIMEOUT_S, {}
    for name, call in calls.items():
        try:
            answers[name] = ray.get(call, timeout=timeout_s)
        except ray.exceptions.RayError as error:
            raise NoAnswer(f"{name} does not answer within {timeout_s:g} s ({type(error).__name__})") from error
    return answers


def _clock_offset_s(name: str, probe: ray.actor.ActorHandle) -> float:
    """Estimates how far a node's clock is ahead of this one's, in seconds, by half of the round trip."""
    samples = []
    for _ in range(CLOCK_SAMPLES):
        start_s = time.time()
        there_s = _gather({name: probe.clock_s.remote()})[name]
        end_s = time.time()
        samples.append((end_s - start_s, there_s - (start_s + end_s) / 2))
    return min(samples)[1]


def _exchange_files(probes: dict[str, ray.actor.ActorHandle], runs_dir: str) -> dict[str, tuple[float, float, str]]:
    """Has each node write a file under `runs_dir` and read its neighbour's; returns (MB/s written, MB/s read, problem)."""
    folder = storage_path(runs_dir) / f".doctor-{uuid.uuid4().hex[:8]}"
    files = {name: str(folder / f"{number}.bin") for number, name in enumerate(probes)}
    written = _gather({name: probe.write.remote(files[name]) for name, probe in probes.items()})
    names = list(probes)
    neighbours = dict(zip(names, [*names[1:], names[0]], strict=True))
    read = _gather({name: probe.read.remote(files[neighbours[name]]) for name, probe in probes.items()})
    try:
        with said_in_one_line(folder):
            remove_folder(folder)
    except ConfigError:
        pass  # nothing was written
    return {name: (written[name][0], read[name][0], written[name][1] or read[name][1]) for name in names}


def _meet(probes: dict[str, ray.actor.ActorHandle], ips: dict[str, str]) -> dict[str, dict[str, str]]:
    """Has every node connect to a port that each of the others just opened; returns which ones could not, and why."""
    ports = _gather({name: probe.listen.remote(ips[name]) for name, probe in probes.items()})
    addresses = {name: (ips[name], port) for name, port in ports.items()}
    others = {name: {other: address for other, address in addresses.items() if other != name} for name in probes}
    calls = {name: probe.unreachable.remote(others[name]) for name, probe in probes.items()}
    return _gather(calls, ANSWER_TIMEOUT_S + node.CONNECT_TIMEOUT_S * len(probes))


def examine_nodes(runs_dir: str, model_ids: list[str], say: Callable[[str], None]) -> list[Node]:
    """Asks every live node about itself, its clock, the shared storage and its connections to the others.

    Args:
        runs_dir: where a training keeps its runs; a folder of this call's own is made there and removed.
        model_ids: backbones whose weights the nodes should have.
        say: takes a line on what is done next.

    Raises:
        NoAnswer: a node does not answer within ANSWER_TIMEOUT_S.
    """
    listed = [entry for entry in ray.nodes() if entry["Alive"]]
    names = node_names(listed)
    say(f"nodes that are up: {', '.join(names)}")
    probes = {
        name: _Probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)).remote()
        for name, entry in zip(names, listed, strict=True)
    }
    try:
        facts = _gather({name: probe.facts.remote(model_ids) for name, probe in probes.items()})
        say(f"writing {node.PAYLOAD_BYTES // 2**20} MiB from each node to {runs_dir}, and reading them from another")
        files = _exchange_files(probes, runs_dir)
        say("connecting each node to all others, and comparing clocks")
        problems = _meet(probes, {name: entry["NodeManagerAddress"] for name, entry in zip(names, listed, strict=True)})
        offsets = {name: _clock_offset_s(name, probe) for name, probe in probes.items()}
    finally:
        for probe in probes.values():
            ray.kill(probe)
    return [
        Node(
            name=name,
            ip=entry["NodeManagerAddress"],
            is_head="node:__internal_head__" in entry["Resources"],
            labels=entry["Labels"],
            resources=entry["Resources"],
            facts=facts[name],
            clock_offset_s=offsets[name],
            reads_and_writes=files[name][:2],
            storage_problem=files[name][2],
            unreachable=problems[name],
        )
        for name, entry in zip(names, listed, strict=True)
    ]
