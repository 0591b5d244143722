"""The places of a training in a cluster: which nodes its workers go to, which decode, and what the cluster lacks for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from tiny_audio.config import TrainConfig
from tiny_audio.counts import name_rows
from tiny_audio.ray_names import NODE_GROUP, SUBCLUSTER


@dataclass(frozen=True)
class Offer:
    """Holds what a live node offers; its name is its host's, with the beginning of Ray's id if several nodes share it."""

    name: str
    labels: dict[str, str]
    resources: dict[str, float]

    @property
    def num_gpus(self) -> float:
        return self.resources.get("GPU", 0.0)

    @property
    def num_cpus(self) -> float:
        return self.resources.get("CPU", 0.0)


@dataclass(frozen=True)
class Lack:
    """Says what a cluster lacks for a training, and the remedy; `kind` is labels, CPUs or GPUs."""

    kind: str
    detail: str
    remedy: str


def worker_resources(config: TrainConfig) -> dict[str, float]:
    """Returns what a worker asks of its node."""
    return {"GPU": 1} if config.use_gpu else {"CPU": 1}


def worker_selector(config: TrainConfig) -> dict[str, str] | None:
    """Returns the labels that a worker asks of its node: any but the decode nodes', whose CPUs decode tasks wait for."""
    label = config.data.decode_label
    return {SUBCLUSTER: f"!{label}"} if label else None


def is_decode_node(node: Offer, config: TrainConfig) -> bool:
    """Says whether decoding is confined to nodes like this one."""
    return bool(config.data.decode_label) and node.labels.get(SUBCLUSTER) == config.data.decode_label


def is_train_node(node: Offer, config: TrainConfig) -> bool:
    """Says whether a node can run a worker. Ray Train sees no labelled node where the number of workers may change."""
    has_place = node.num_gpus >= 1 if config.use_gpu else node.num_cpus >= 1
    return has_place and not (SUBCLUSTER in node.labels if config.min_workers else is_decode_node(node, config))


def node_names(listed: Sequence[dict]) -> list[str]:
    """Returns the host names of nodes as Ray lists them, followed by the beginning of Ray's own id if several share one."""
    hosts = [entry["NodeManagerHostname"] for entry in listed]
    return [
        host if hosts.count(host) == 1 else f"{host}#{entry['NodeID'][:4]}" for host, entry in zip(hosts, listed, strict=True)
    ]


def live_nodes() -> list[Offer]:
    """Lists the nodes of the cluster that are up."""
    listed = [entry for entry in ray.nodes() if entry["Alive"]]
    names = node_names(listed)
    return [Offer(name, entry["Labels"], entry["Resources"]) for name, entry in zip(names, listed, strict=True)]


def can_grow(nodes: Sequence[Offer]) -> bool:
    """Says whether nodes come by themselves: a launcher's and KubeRay's nodes are of a group, those of `ray start` are not."""
    return any(NODE_GROUP in node.labels for node in nodes)


def find_lacks(nodes: Sequence[Offer], config: TrainConfig) -> list[Lack]:
    """Finds what these nodes lack for the workers and the decode tasks of a training, were nothing else to run there."""
    label, (resource,) = config.data.decode_label, worker_resources(config)
    num_wanted = config.min_workers or config.num_workers
    num_places = sum(int(node.resources.get(resource, 0)) for node in nodes if is_train_node(node, config))
    decode_cpus = sum(node.num_cpus for node in nodes if not label or is_decode_node(node, config))
    lacks = []
    if num_places < num_wanted:
        workers = "1 worker wants a" if num_wanted == 1 else f"{num_wanted} workers each want a"
        detail = f"{workers} {resource}, and there is room for {num_places}{' off the decode nodes' if label else ''}"
        remedy = f"start more nodes with {resource}s{' and without their label' if label else ''}, or lower num_workers"
        lacks.append(Lack("labels" if label else f"{resource}s", detail, remedy))
    if label and decode_cpus < 1:
        detail = f"no node has the label {SUBCLUSTER}={label} and a CPU, and data are decoded there alone"
        lacks.append(Lack("labels", detail, f"{_start_one(label)}, or leave data.decode_label out"))
    num_held = 0 if label or config.use_gpu else config.num_workers
    if not label and decode_cpus < num_held + 1:
        detail = f"{num_held} of {decode_cpus:g} CPUs are for workers, and decode tasks need one too"
        lacks.append(Lack("CPUs", detail, "start nodes with more CPUs, or lower num_workers"))
    return lacks


def _start_one(label: str) -> str:
    return f"start one (ray start --labels={SUBCLUSTER}={label})"


def missing_decode_nodes(label: str) -> str:
    """Says that no decode node is up, which ones were, and the remedy; returns "" while there is one."""
    labelled = [entry for entry in ray.nodes() if entry["Labels"].get(SUBCLUSTER) == label]
    if any(entry["Alive"] for entry in labelled):
        return ""
    gone = f" (gone: {name_rows(sorted({entry['NodeManagerHostname'] for entry in labelled}))})" if labelled else ""
    detail = f"no node with the label {SUBCLUSTER}={label} is up{gone}, and data are decoded there alone"
    return f"{detail}; {_start_one(label)}, and the run goes on"
