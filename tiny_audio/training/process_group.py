"""How the workers' processes meet: Ray Train sets up torch's process group, at addresses that other hosts can reach."""

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


class NodeAddressConfig(TorchConfig):
    """Ray Train's set-up of torch's process group, after `listen_on_node_address` on each worker."""

    @property
    def backend_cls(self):
        class OnNodeAddress(super().backend_cls):
            def on_start(self, worker_group, backend_config):
                worker_group.execute(listen_on_node_address)
                super().on_start(worker_group, backend_config)

        return OnNodeAddress
