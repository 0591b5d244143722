"""Judges what the nodes' facts mean for a training; each check is a function of nodes and config that returns findings."""

from __future__ import annotations

import os
from collections import Counter

from tiny_audio.cluster.findings import Finding, fail, ok, warn
from tiny_audio.cluster.probe import Node
from tiny_audio.config import TrainConfig
from tiny_audio.counts import name_rows
from tiny_audio.ray_names import SUBCLUSTER
from tiny_audio.training.places import find_lacks, is_decode_node, is_train_node

MIN_DRIVER = 580  # of NVIDIA's, for CUDA 13, which torch's wheels bring
MAX_CLOCK_OFFSET_S = 5.0  # beyond it the order of log lines misleads; object storage refuses requests from 900 s on
MIN_FREE_SHARE = 0.05  # of the disk: below it Ray stops spilling (RAY_local_fs_capacity_threshold)
FREE_DISK_GIB = 20.0  # what the object store of a decode node may spill while training waits
SLOW_STORAGE_MB_S = 50.0  # 141 MB of a checkpoint would take 3 s, 8 GB of weights 3 minutes


def check_versions(nodes: list[Node]) -> list[Finding]:
    """Checks that all nodes run the same Python and packages; the most common version counts as the right one.

    What follows a plus does not count: nodes without GPUs may run torch without CUDA (2.11.0+cpu).
    """
    findings = []
    for package in nodes[0].facts.versions:
        versions = {node.name: node.facts.versions[package].partition("+")[0] for node in nodes}
        common = Counter(versions.values()).most_common(1)[0][0]
        remedy = "run one image on all nodes, or the same `make setup` on each"
        findings += [
            fail("versions", name, f"{package} {found}, the others {common}", remedy)
            for name, found in versions.items()
            if found != common
        ]
    known = nodes[0].facts.versions
    return findings or [ok("versions", ", ".join(f"{name} {known[name]}" for name in known))]


def check_names(nodes: list[Node]) -> list[Finding]:
    """Checks that a host's name resolves to an address at which others reach it; training itself goes by the node's address."""
    remedy = "take the name off the 127.x line of /etc/hosts: training goes by addresses, but other programs go by names"
    findings = []
    for node in nodes:
        address = node.facts.resolved_ip
        if not address:
            findings.append(warn("names", node.name, f"its own name {node.facts.host_name} resolves to nothing", remedy))
        elif address.startswith("127.") and len({other.ip for other in nodes}) > 1:
            findings.append(warn("names", node.name, f"its own name {node.facts.host_name} resolves to {address}", remedy))
    return findings or [ok("names", "every host's name resolves to an address that the others can use")]


def check_clocks(nodes: list[Node]) -> list[Finding]:
    """Checks that clocks agree."""
    late = [node for node in nodes if abs(node.clock_offset_s) > MAX_CLOCK_OFFSET_S]
    remedy = "run chrony or systemd-timesyncd on the hosts; a container takes its host's clock"
    findings = [warn("clocks", node.name, f"{node.clock_offset_s:+.1f} s from the driver's", remedy) for node in late]
    return findings or [ok("clocks", f"within {max(abs(node.clock_offset_s) for node in nodes):.2f} s of the driver's")]


def check_ports(nodes: list[Node]) -> list[Finding]:
    """Checks that every node can connect to every other: Ray, Gloo and NCCL take ports of the system's choice."""
    remedy = "let all TCP ports pass between the nodes: a security group's rule for itself, or a NetworkPolicy's for its own pods"
    findings = []
    for node in nodes:
        for other, why in (node.unreachable or {}).items():
            findings.append(fail("ports", node.name, f"cannot connect to {other}: {why}", remedy))
    return findings or [ok("ports", "every node reaches every other" if len(nodes) > 1 else "one node: none to reach")]


def check_storage(nodes: list[Node], runs_dir: str) -> list[Finding]:
    """Checks that nodes can read what others write to the runs' folder, fast enough for checkpoints."""
    remedy = "mount the same file system on all nodes, writable for their user; or name object storage in runs_dir"
    findings = [fail("storage", node.name, node.storage_problem, remedy) for node in nodes if node.storage_problem]
    slow = [node for node in nodes if not node.storage_problem and min(node.reads_and_writes) < SLOW_STORAGE_MB_S]
    for node in slow:
        detail = "{:.0f} MB/s written, {:.0f} read".format(*node.reads_and_writes)
        findings.append(
            warn("storage", node.name, detail, "raise the file system's throughput; checkpoints stop training meanwhile")
        )
    slowest = min(min(node.reads_and_writes) for node in nodes)
    return findings or [ok("storage", f"{runs_dir}: written and read by each node ({len(nodes)}), at {slowest:.0f} MB/s or more")]


def check_memory(nodes: list[Node]) -> list[Finding]:
    """Checks that the object store fits into /dev/shm, and what it spills onto the disk."""
    findings = []
    for node in nodes:
        store_gib, shared_gib = node.resources.get("object_store_memory", 0) / 2**30, node.facts.shared_memory_gib
        if shared_gib < store_gib:
            remedy = f"give it {store_gib:.0f} GiB: --shm-size, or an emptyDir of medium Memory at /dev/shm"
            findings.append(fail("shm", node.name, f"/dev/shm {shared_gib:.1f} GiB, the object store {store_gib:.1f}", remedy))
        free_gib, share = node.facts.free_disk_gib, node.facts.free_disk_gib / node.facts.disk_gib
        detail = f"{free_gib:.0f} GiB of {node.facts.disk_gib:.0f} are free where Ray spills"
        remedy = f"free or add disk until {FREE_DISK_GIB:.0f} GiB are free, under Ray's temporary folder"
        if share < MIN_FREE_SHARE:
            findings.append(fail("disk", node.name, detail, remedy))
        elif free_gib < FREE_DISK_GIB:
            findings.append(warn("disk", node.name, detail, remedy))
    least = min(node.facts.free_disk_gib for node in nodes)
    return findings or [ok("shm, disk", f"/dev/shm holds the object store; {least:.0f} GiB of disk or more are free")]


def check_devices(nodes: list[Node], config: TrainConfig) -> list[Finding]:
    """Checks that GPUs are of one kind, with a driver for torch's CUDA."""
    devices = {node.name: node.facts.devices for node in nodes if node.num_gpus}
    if not config.use_gpu:
        return [ok("GPUs", "use_gpu=false: none is asked for")]
    findings = []
    for name, lines in devices.items():
        versions = {line.rpartition("driver ")[2] for line in lines}
        if not lines:
            findings.append(fail("GPUs", name, "nvidia-smi shows no GPU, and Ray offers some", "install NVIDIA's driver"))
        findings += [
            fail("GPUs", name, f"driver {found}", f"install driver {MIN_DRIVER} or newer: torch's wheels bring CUDA 13")
            for found in versions
            if int(found.partition(".")[0] or 0) < MIN_DRIVER
        ]
    kinds = Counter(line for lines in devices.values() for line in lines)
    if len(kinds) > 1 and not findings:
        listing = name_rows([f"{count} x {kind}" for kind, count in kinds.items()])
        findings.append(warn("GPUs", "cluster", listing, "train on one kind of GPU and driver: the slowest sets the pace"))
    return findings or [ok("GPUs", ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "none is up yet")]


def check_places(nodes: list[Node], config: TrainConfig) -> list[Finding]:
    """Checks that labels and resources leave room for decode tasks beside the workers."""
    findings = [fail(lack.kind, "cluster", lack.detail, lack.remedy) for lack in find_lacks(nodes, config)]
    for node in nodes:
        if config.use_gpu and node.num_gpus and SUBCLUSTER in node.labels:
            remedy = f"start it without the label {SUBCLUSTER}: Train's reservation has none, and does not see such nodes"
            findings.append(fail("labels", node.name, f"a GPU node labelled {SUBCLUSTER}={node.labels[SUBCLUSTER]}", remedy))
    label = config.data.decode_label
    decode_cpus = sum(node.num_cpus for node in nodes if not label or is_decode_node(node, config))
    return findings or [
        ok("labels, CPUs", f"{decode_cpus:g} CPUs for decode tasks" + (f" on {SUBCLUSTER}={label}" if label else ""))
    ]


def check_weights(nodes: list[Node], config: TrainConfig) -> list[Finding]:
    """Checks that the nodes that train have the backbones' weights."""
    train_nodes = [node for node in nodes if is_train_node(node, config)]
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    findings = []
    for node in train_nodes:
        for model_id, lack in node.facts.missing_weights.items():
            if lack.startswith("not in HF_HOME"):
                remedy = f"hf download {model_id} --include '*.safetensors' '*.json', once, with HF_HOME on the shared volume"
                found = fail if offline else warn  # with a way to the hub, each node fetches them while its GPUs wait
            else:
                found, remedy = fail, "copy the folder again, to the same path on every node"
            findings.append(found("weights", node.name, f"{model_id}: {lack}", remedy))
    return findings or [ok("weights", f"whole on each node that can train ({len(train_nodes)})")]
