"""How the workers' processes begin: what their libraries read from the environment, and how they meet.

Ray Train sets up torch's process group, at addresses that other hosts can reach.
"""

from __future__ import annotations

import os

import psutil
import ray
from ray.train.torch import TorchConfig


def listen_on_node_address() -> None:
    """Has Gloo listen at the node's own address, as Ray knows it, unless the environment names an interface already.

    By itself Gloo looks up the host's name, which on Debian is 127.0.1.1 by a line of /etc/hosts: no other host reaches that.
    """
    ip = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(address.address == ip for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def keep_memory_whole() -> None:
    """Sets how torch and oneDNN keep memory, for no two steps have the same shapes; what the environment sets already stays.

    Torch's blocks on a GPU are of the sizes that were asked for. A share that is longer than any before fits none of them, so
    torch fills the GPU with new ones, and then frees all, for which every worker waits up to 0.22 s (benchmarks/README.md, "More
    GPUs"). Segments that grow are long enough for whatever comes. oneDNN, which computes on CPUs, would keep 1,024 kernels for
    shapes that never come again: half a gigabyte.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def set_environment() -> None:
    """Sets what a worker's libraries read from its environment before they begin."""
    listen_on_node_address()
    keep_memory_whole()


class ProcessGroupConfig(TorchConfig):
    """Ray Train's set-up of torch's process group, after `set_environment` on each worker."""

    @property
    def backend_cls(self):
        class InOurEnvironment(super().backend_cls):
            def on_start(self, worker_group, backend_config):
                worker_group.execute(set_environment)
                super().on_start(worker_group, backend_config)

        return InOurEnvironment
