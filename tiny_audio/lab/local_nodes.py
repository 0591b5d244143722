"""A Ray of several nodes on this machine, started by `ray start`: each has processes of its own, which can be killed."""

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

from tiny_audio.lab.ray_cli import BIN, WITH_TOKEN, Cluster, free_port
from tiny_audio.ray_names import AGENT_PORT, ANY_WORKER, FILES_FOLDER

T = TypeVar("T")
STORE_BYTES = 256 * 2**20  # of a node's object store; a run of the embedded backbones needs a few MiB
START_TIMEOUT_S = 180


def _environment(folder: str) -> dict[str, str]:
    """Returns an environment that asks for Ray's token, puts its files in `folder` and this Python first: jobs run `python`."""
    return {**os.environ, **WITH_TOKEN, FILES_FOLDER: folder, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


class LocalNode:
    """A node on 127.0.0.1: the process of `ray start` and its descendants. It requires Ray's token.

    The constructor returns once the node is up: nodes that start together would give their sockets the same names.

    Args:
        folder: where Ray writes its files; a short path, and not /tmp/ray, where commands without an address would find it.
        num_cpus: the CPUs that Ray may use on it.
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
        """Returns the node's processes with `name` in their command line; Ray writes there what a worker does."""
        return named_processes(self.process.pid, name)

    def kill(self) -> int:
        """Kills all processes at once, as when a machine goes away; returns how many there were."""
        num_killed = kill(self.processes())
        self.process.wait()
        return num_killed


class LocalNodes:
    """A head without CPUs, as on a cluster, and nodes with CPUs, for as long as the context lasts.

    After an error the folder of Ray's logs stays.
    """

    def __init__(self, num_nodes: int, num_cpus: int):
        self.num_nodes, self.num_cpus = num_nodes, num_cpus
        self.nodes: list[LocalNode] = []
        self.orphans: list[LocalNode] = []  # nodes that have lost their head

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
        """Starts all nodes, also after `kill`. Other Rays may run on this machine."""
        # orphans would join a new head on their old head's port, and their calls take ports that the system chooses
        gcs_port = free_port(6379 + len(self.orphans))
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
        """Starts one more node."""
        self.nodes.append(LocalNode(self.folder, f"--address={self.cluster.gcs_address}", num_cpus=self.num_cpus))

    def lose(self, node: LocalNode) -> int:
        """Kills a node; returns how many processes it had."""
        self.nodes.remove(node)
        return node.kill()

    def lose_head(self) -> int:
        """Kills the head alone; returns how many processes it had. The other nodes live on beside those of a new `start`."""
        head, *others = self.nodes
        self.nodes, self.orphans = [], self.orphans + others
        return head.kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """Returns `LocalNode.processes` of all nodes but orphans."""
        return [process for node in self.nodes for process in node.processes(name)]

    def kill(self) -> int:
        """Kills all nodes, the head first, whose loss the others do not survive; returns how many processes they had."""
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
    """Returns those of a process and its descendants with `name` in their command line."""
    processes = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(root_pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):  # it has ended meanwhile
                processes += [process] * (name in " ".join(process.cmdline()))
    return processes


def kill(processes: list[psutil.Process]) -> int:
    """Sends SIGKILL, which no process can catch; returns how many were still alive."""
    num_killed = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            process.kill()
            num_killed += 1
    return num_killed


def wait_for(condition: Callable[[], T], what: str, timeout_s: float, poll_s: float = 0.02) -> T:
    """Waits until `condition` returns something true, and returns that.

    Raises:
        TimeoutError: it did not within `timeout_s`; the message says `what` was awaited.
    """
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(poll_s)
    return value
