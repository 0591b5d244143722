"""A Ray of this process's own, for the quickstart, the drills, the benchmarks and the tests; and jobs on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiny_audio.config import require
from tiny_audio.data.stream import quiet_ray_data
from tiny_audio.ray_names import AGENT_PORT, AUTH_MODE, MAX_STARTING_WORKERS, NO_AGENT, OWN_LINE, SERVER_ADDRESS, SUBMITTED

BIN = Path(sys.executable).parent
WITH_TOKEN = {AUTH_MODE: "token"}  # a local Ray asks for one; its commands must be told that it does


@dataclass(frozen=True)
class Cluster:
    """Where the local Ray is: its job server and its control service."""

    jobs_url: str
    gcs_address: str


def free_port(preferred: int) -> int:
    """`preferred`, or another that nobody listens on."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise RuntimeError("no free port on 127.0.0.1")


@contextmanager
def local_cluster() -> Iterator[Cluster]:
    """A Ray of this process's own, with a job server on 127.0.0.1, for as long as the context lasts.

    Raises:
        ConfigError: another Ray runs on this machine; Ray's job agents share a fixed port, and the second gets no jobs.
    """
    import ray

    in_use = f"another Ray on this machine holds port {AGENT_PORT}, which runs its jobs; stop it (ray stop), then try again"
    require(free_port(AGENT_PORT) == AGENT_PORT, in_use)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs run `python`: let it be this one
    os.environ.setdefault(MAX_STARTING_WORKERS, "4")  # Ray warns of four times as many processes
    port = free_port(8265)
    # Ray Train asks this server at a run's end; it would look for it, and wait 12 s where a Ray that is gone left its address
    os.environ[SERVER_ADDRESS] = f"http://127.0.0.1:{port}"
    context = ray.init(
        address="local",
        num_cpus=max(4, (os.cpu_count() or 1) + 2),  # training holds two while its decode tasks need more
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        log_to_driver=False,
        logging_level="ERROR",
    )
    del os.environ[SERVER_ADDRESS]  # Ray's processes have it; here it would go before the address of any other cluster
    quiet_ray_data()
    try:
        yield Cluster(f"http://{context.dashboard_url}", context.address_info["gcs_address"])
    finally:
        ray.shutdown()


def submit_job(cluster: Cluster, *command: str, copied: bool = True, output: BinaryIO | None = None) -> None:
    """`ray job submit` of this repository, its log shown as it comes, or written to `output`.

    Unless `copied`, the job runs in the folder that the cluster was started in, and not in a copy of this one.

    A young cluster has a job server before it has the agent that runs jobs, and refuses until then: so it asks again.

    Raises:
        CalledProcessError: the job failed.
    """
    submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.jobs_url, *["--working-dir", "."] * copied, "--", *command]
    sys.stdout.flush()
    output = output or sys.stdout.buffer
    output.write(f"$ ray job submit {'--working-dir . ' * copied}-- {' '.join(command)}\n".encode())
    for wait_s in (2, 4, 8, 16, None):
        with subprocess.Popen(submit, env={**os.environ, **WITH_TOKEN}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
            refusal = _copy_log(job.stdout, output)
        if not job.returncode:
            return
        if wait_s is None or NO_AGENT not in refusal:
            break
        time.sleep(wait_s)
    output.write(refusal)
    raise subprocess.CalledProcessError(job.returncode, submit)


def _copy_log(log: BinaryIO, output: BinaryIO) -> bytes:
    """A job's log as it comes, without what Ray itself says of uploads and connections; returns what came before its start."""
    before = b""
    started = False
    for line in log:
        started = started or SUBMITTED in line
        if OWN_LINE.match(line):
            continue
        if started:
            output.write(line)
            output.flush()
        else:
            before += line
    return before
