"""A Ray of several nodes on this machine, by `ray start`: each has processes of its own, may be killed, and come back."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import requests

from tiny_audio.quickstart import AGENT_PORT, BIN, WITH_TOKEN, Cluster, free_port

STORE_BYTES = 256 * 2**20  # of a node's object store; a run of the embedded backbones needs a few
START_TIMEOUT_S = 180


def _environment() -> dict[str, str]:
    """With Ray's token asked for, and this Python first: jobs run `python`."""
    return {**os.environ, **WITH_TOKEN, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


class LocalNode:
    """One node: the processes that `ray start` begins, and theirs. On 127.0.0.1, with Ray's token.

    Returns once it is up: nodes that start at the same time would choose the same names for their sockets.
    """

    def __init__(self, *options: str, num_cpus: int = 0):
        size = ["--num-gpus=0", f"--num-cpus={num_cpus}", f"--object-store-memory={STORE_BYTES}"]
        common = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *size]
        agent = f"--dashboard-agent-listen-port={free_port(AGENT_PORT)}"  # it runs the jobs
        command = [str(BIN / "ray"), "start", *common, agent, *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=_environment(), **quiet)
        wait_for(lambda: self.processes("ray::"), "a node to start", START_TIMEOUT_S, poll_s=0.2)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those of this node with `name` in their command line, which for Ray's workers is what they do."""
        return named_processes(self.process.pid, name)

    def kill(self) -> None:
        """All processes at once, as when a machine goes away."""
        kill(self.processes())
        self.process.wait()


class LocalNodes:
    """A head without CPUs, as on a cluster, and nodes with them. Used as a context."""

    def __init__(self, num_nodes: int, num_cpus: int):
        self.num_nodes, self.num_cpus = num_nodes, num_cpus
        self.nodes: list[LocalNode] = []

    def __enter__(self) -> LocalNodes:
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self.kill()

    def start(self) -> None:
        """Starts all nodes; also again, after `kill`. Other Rays on this machine do not matter."""
        gcs_port, jobs_port = free_port(6379), free_port(8265)
        self.cluster = Cluster(f"http://127.0.0.1:{jobs_port}", f"127.0.0.1:{gcs_port}")
        token = [str(BIN / "ray"), "get-auth-token", "--generate"]
        subprocess.run(token, env=_environment(), check=True, stdout=subprocess.DEVNULL)
        ports = (f"--port={gcs_port}", f"--dashboard-port={jobs_port}", f"--ray-client-server-port={free_port(10001)}")
        self.nodes.append(LocalNode("--head", "--dashboard-host=127.0.0.1", *ports))
        wait_for(lambda: _answers(self.cluster.jobs_url), "the head node to start", START_TIMEOUT_S, poll_s=0.5)
        for _ in range(self.num_nodes):
            self.add()

    def add(self) -> None:
        """One more node."""
        self.nodes.append(LocalNode(f"--address={self.cluster.gcs_address}", num_cpus=self.num_cpus))

    def lose(self, node: LocalNode) -> None:
        self.nodes.remove(node)
        node.kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """As `LocalNode.processes`, of all nodes."""
        return [process for node in self.nodes for process in node.processes(name)]

    def kill(self) -> None:
        """All nodes, the head first: it is the one whose loss the others do not survive."""
        for node in self.nodes:
            node.kill()
        self.nodes = []


def _answers(url: str) -> bool:
    try:
        requests.get(url, timeout=5)
    except requests.RequestException:
        return False
    return True


def named_processes(root_pid: int, name: str) -> list[psutil.Process]:
    """A process and all that it began, directly or not, with `name` in their command line."""
    found = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(root_pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):  # gone meanwhile
                found += [process] * (name in " ".join(process.cmdline()))
    return found


def kill(processes: list[psutil.Process]) -> int:
    """SIGKILL, which no process can catch; returns how many there were."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # gone by itself
            process.kill()
    return len(processes)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float, poll_s: float = 0.02) -> None:
    """Returns as soon as the condition is true.

    Raises:
        TimeoutError: it is not, within `timeout_s`.
    """
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(poll_s)
