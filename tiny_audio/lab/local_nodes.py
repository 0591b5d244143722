"""A Ray of several nodes on this machine, by `ray start`: each has processes of its own, may be killed, and come back."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import requests

from tiny_audio.lab.local_ray import BIN, WITH_TOKEN, Cluster, free_port
from tiny_audio.ray_names import AGENT_PORT, ANY_WORKER, FILES_FOLDER

T = TypeVar("T")
STORE_BYTES = 256 * 2**20  # of a node's object store; a run of the embedded backbones needs a few
START_TIMEOUT_S = 180


def _environment(folder: str) -> dict[str, str]:
    """With Ray's token asked for, its files in `folder`, and this Python first: jobs run `python`."""
    return {**os.environ, **WITH_TOKEN, FILES_FOLDER: folder, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


class LocalNode:
    """One node: the processes that `ray start` begins, and theirs. On 127.0.0.1, with Ray's token.

    Returns once it is up: nodes that start at the same time would choose the same names for their sockets.

    Args:
        folder: for Ray's files, with a short path. Not /tmp/ray: there commands that name no address would find this one.
    """

    def __init__(self, folder: str, *options: str, num_cpus: int = 0):
        Path(folder, "ray").mkdir(exist_ok=True)
        size = ["--num-gpus=0", f"--num-cpus={num_cpus}", f"--object-store-memory={STORE_BYTES}"]
        common = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *size]
        agent = f"--dashboard-agent-listen-port={free_port(AGENT_PORT)}"  # it runs the jobs
        command = [str(BIN / "ray"), "start", *common, agent, *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=_environment(folder), **quiet)
        try:
            wait_for(self._is_up, "a node to start", START_TIMEOUT_S, poll_s=0.2)
        except BaseException:
            self.kill()
            raise

    def _is_up(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"ray start ended with code {self.process.returncode}: {' '.join(self.process.args)}")
        return bool(self.processes(ANY_WORKER))

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those of this node with `name` in their command line, which for Ray's workers is what they do."""
        return named_processes(self.process.pid, name)

    def kill(self) -> int:
        """All processes at once, as when a machine goes away; returns how many there were."""
        num_killed = kill(self.processes())
        self.process.wait()
        return num_killed


class LocalNodes:
    """A head without CPUs, as on a cluster, and nodes with them. Used as a context; after an error Ray's logs stay."""

    def __init__(self, num_nodes: int, num_cpus: int):
        self.num_nodes, self.num_cpus = num_nodes, num_cpus
        self.nodes: list[LocalNode] = []
        self.orphans: list[LocalNode] = []  # their head is gone

    def __enter__(self) -> LocalNodes:
        self.folder = tempfile.mkdtemp(prefix="ray-")
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, error, *_) -> None:
        self.kill()
        if error is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Starts all nodes; also again, after `kill`. Other Rays on this machine do not matter."""
        gcs_port = free_port(0 if self.orphans else 6379)  # orphans would come to a head on the port of their own
        jobs_port = free_port(8265)
        self.cluster = Cluster(f"http://127.0.0.1:{jobs_port}", f"127.0.0.1:{gcs_port}")
        token = [str(BIN / "ray"), "get-auth-token", "--generate"]
        subprocess.run(token, env=_environment(self.folder), check=True, stdout=subprocess.DEVNULL)
        ports = (f"--port={gcs_port}", f"--dashboard-port={jobs_port}", f"--ray-client-server-port={free_port(10001)}")
        self.nodes.append(LocalNode(self.folder, "--head", "--dashboard-host=127.0.0.1", *ports))
        wait_for(lambda: _answers(self.cluster.jobs_url), "the head node to start", START_TIMEOUT_S, poll_s=0.5)
        for _ in range(self.num_nodes):
            self.add()

    def add(self) -> None:
        """One more node."""
        self.nodes.append(LocalNode(self.folder, f"--address={self.cluster.gcs_address}", num_cpus=self.num_cpus))

    def lose(self, node: LocalNode) -> int:
        """Kills it; returns how many processes it had."""
        self.nodes.remove(node)
        return node.kill()

    def lose_head(self) -> int:
        """Kills the head alone; returns how many processes it had. The other nodes stay, beside those of a new `start`."""
        head, *others = self.nodes
        self.nodes, self.orphans = [], self.orphans + others
        return head.kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """As `LocalNode.processes`, of all nodes but orphans."""
        return [process for node in self.nodes for process in node.processes(name)]

    def kill(self) -> int:
        """All nodes, the head first: it is the one whose loss the others do not survive; returns how many processes they had."""
        num_killed = sum(node.kill() for node in (*self.nodes, *self.orphans))
        self.nodes, self.orphans = [], []
        return num_killed


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
    """SIGKILL, which no process can catch; returns how many were still there."""
    num_killed = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # gone by itself
            process.kill()
            num_killed += 1
    return num_killed


def wait_for(condition: Callable[[], T], what: str, timeout_s: float, poll_s: float = 0.02) -> T:
    """Returns what the condition does, as soon as it is true.

    Raises:
        TimeoutError: it is not, within `timeout_s`.
    """
    until = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(poll_s)
    return found
