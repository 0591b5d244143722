"""The `ray` command on a Ray of this machine: where it is, how it is told of it, and jobs that it submits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiny_audio.ray_names import AUTH_MODE, NO_AGENT, OWN_LINE, SUBMITTED

BIN = Path(sys.executable).parent
WITH_TOKEN = {AUTH_MODE: "token"}  # a local Ray requires a token, and its commands must be told that it does


@dataclass(frozen=True)
class Cluster:
    """The addresses of a local Ray: its job server's URL, and its control service's host and port."""

    jobs_url: str
    gcs_address: str


def free_port(preferred: int) -> int:
    """Returns `preferred`, or another port if a process listens on that one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise RuntimeError("no free port on 127.0.0.1")


def submit_job(cluster: Cluster, *command: str, copied: bool = True, output: BinaryIO | None = None) -> None:
    """Runs `ray job submit` of this repository; shows the job's log as it comes, or writes it to `output`.

    A young cluster has a job server before it has the agent that runs jobs, and refuses until then: so it asks again.

    Args:
        copied: whether the job runs in a copy of this folder, or in the folder where the cluster was started.

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
    """Copies a job's log as it comes, without Ray's own lines on uploads and connections; returns what preceded its start."""
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
