"""Gathers what one node can tell of itself: versions, GPUs, memory, disk, names, ports. It runs there, without Ray."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from upath import UPath

from tiny_audio.config import ConfigError
from tiny_audio.model.backbone import backbone_path, require_weights
from tiny_audio.storage import put, said_in_one_line

PACKAGES = ("ray", "torch", "torchaudio", "transformers", "deepspeed", "numpy", "pyarrow")
GIB = 2**30
SHARED_MEMORY = "/dev/shm"
CONNECT_TIMEOUT_S = 5.0
PAYLOAD_BYTES = 16 * 2**20  # written and read by each node: long enough to time, short enough to wait for


@dataclass(frozen=True)
class NodeFacts:
    """Holds what a node says of itself, with sizes in GiB.

    `devices` are lines "NAME, driver VERSION"; `resolved_ip` is what the host's own name resolves to, or empty;
    `missing_weights` maps a backbone's id to what its folder lacks.
    """

    versions: dict[str, str]
    devices: list[str]
    host_name: str
    resolved_ip: str
    shared_memory_gib: float
    free_disk_gib: float
    disk_gib: float
    missing_weights: dict[str, str] = field(default_factory=dict)


def installed_versions() -> dict[str, str]:
    """Lists the versions of Python and of the packages that must be alike on all nodes; "none" for one that is missing."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return versions


def gpu_devices() -> list[str]:
    """Lists the GPUs that NVIDIA's driver shows: "NVIDIA H100 80GB HBM3, driver 580.65.06"."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [", driver ".join(part.strip() for part in line.rsplit(",", 1)) for line in listing.splitlines() if line.strip()]


def resolve(host_name: str) -> str:
    """Returns the address that a host's name resolves to, or "" if there is none."""
    try:
        return socket.gethostbyname(host_name)
    except OSError:
        return ""


def lacking_weights(model_id: str) -> str:
    """Says what is missing of a backbone's weights on this machine; returns "" if they are whole.

    The weights of a hub id are looked up in the hub's cache (HF_HOME), without the network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = backbone_path(model_id)
    try:
        if not Path(folder).is_dir():
            folder = snapshot_download(folder, local_files_only=True, allow_patterns=["*.safetensors", "*.json"])
        require_weights(folder)
    except LocalEntryNotFoundError:
        return "not in HF_HOME yet"
    except ConfigError as error:
        return str(error)
    return ""


def node_facts(model_ids: list[str], scratch: str) -> NodeFacts:
    """Gathers what this node says of itself.

    Args:
        model_ids: backbones whose weights it should have.
        scratch: the folder to which Ray spills.
    """
    host_name, disk = socket.gethostname(), shutil.disk_usage(scratch)
    return NodeFacts(
        versions=installed_versions(),
        devices=gpu_devices(),
        host_name=host_name,
        resolved_ip=resolve(host_name),
        shared_memory_gib=shutil.disk_usage(SHARED_MEMORY).total / GIB,
        free_disk_gib=disk.free / GIB,
        disk_gib=disk.total / GIB,
        missing_weights={name: lack for name in model_ids if (lack := lacking_weights(name))},
    )


def listen(ip: str) -> int:
    """Opens a port of the system's choice at `ip` that greets every client until the process ends; returns the port."""
    server = socket.create_server((ip, 0))

    def greet() -> None:
        while True:
            connection, _ = server.accept()
            connection.close()

    threading.Thread(target=greet, daemon=True).start()
    return server.getsockname()[1]


def unreachable(addresses: dict[str, tuple[str, int]]) -> dict[str, str]:
    """Connects to each of the named (IP, port); returns why it could not, by name."""
    problems = {}
    for name, address in addresses.items():
        try:
            socket.create_connection(address, CONNECT_TIMEOUT_S).close()
        except OSError as error:
            problems[name] = error.strerror or str(error) or type(error).__name__
    return problems


def write_payload(path: Path | UPath) -> tuple[float, str]:
    """Writes PAYLOAD_BYTES to shared storage; returns MB/s, and what was wrong."""
    data, start_s = os.urandom(PAYLOAD_BYTES), time.perf_counter()
    try:
        with said_in_one_line(path):
            put(path, data)
    except ConfigError as error:
        return 0.0, str(error)
    return len(data) / 1e6 / (time.perf_counter() - start_s), ""


def read_payload(path: Path | UPath) -> tuple[float, str]:
    """Reads what another node wrote by `write_payload`; returns MB/s, and what was wrong."""
    start_s = time.perf_counter()
    try:
        with said_in_one_line(path):
            data = path.read_bytes()
    except ConfigError as error:
        return 0.0, str(error)
    speed = len(data) / 1e6 / (time.perf_counter() - start_s)
    return speed, "" if len(data) == PAYLOAD_BYTES else f"{path}: {len(data)} bytes are there, not {PAYLOAD_BYTES}"
