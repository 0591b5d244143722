"""Memory of this process, of a Ray's processes and of its object store."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from contextlib import suppress

import psutil

from tiny_audio.lab.local_nodes import named_processes
from tiny_audio.lab.process_names import TRAIN_DRIVER
from tiny_audio.lab.ray_cli import BIN, WITH_TOKEN, Cluster
from tiny_audio.ray_names import DATA_SPLITTER, SPILLED_MIB, STORE_USED_MIB, TRAIN_CONTROLLER, TRAIN_WORKER

ROLES = {"workers": TRAIN_WORKER, "driver": TRAIN_DRIVER, "controller": TRAIN_CONTROLLER, "data": DATA_SPLITTER, "all": ""}


def rss_mib() -> float:
    """Returns the memory of this process now."""
    return psutil.Process().memory_info().rss / 2**20


def peak_rss_mib() -> float:
    """Returns the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def anonymous_mib(processes: list[psutil.Process]) -> float:
    """Returns the processes' own memory: without files, and without the object store, which all share."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # it has ended meanwhile
            memory = process.memory_info()
            total += memory.rss - memory.shared
    return total / 2**20


def memory_sample(cluster: Cluster) -> dict[str, float]:
    """Returns MiB in use now by each of ROLES (all are this process and its children), in the object store, and spilled."""
    sample = {role: anonymous_mib(named_processes(os.getpid(), name)) for role, name in ROLES.items()}
    command = [str(BIN / "ray"), "memory", "--stats-only", "--address", cluster.gcs_address]
    stats = subprocess.run(command, env={**os.environ, **WITH_TOKEN}, capture_output=True, text=True, check=True).stdout
    used, spilled = (re.search(pattern, stats) for pattern in (STORE_USED_MIB, SPILLED_MIB))
    return {**sample, "store": float(used[1]) if used else 0.0, "spilled": float(spilled[1]) if spilled else 0.0}
