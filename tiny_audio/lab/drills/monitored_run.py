"""A training under attack: it runs as a job on a Ray of several nodes, and its folder tells how far it is."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

import psutil

from tiny_audio.config import TrainConfig
from tiny_audio.config_files import save_config
from tiny_audio.lab.local_nodes import LocalNode, LocalNodes, wait_for
from tiny_audio.lab.process_names import DECODE_WORKER, TRAIN_DRIVER
from tiny_audio.lab.ray_cli import submit_job
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.checkpoint import CHECKPOINTS, SUMS, latest_checkpoint, load_progress
from tiny_audio.run.claim import CLAIM
from tiny_audio.run.metrics import TOLD, read_lines

T = TypeVar("T")
WAIT_TIMEOUT_S = 600.0


class MonitoredRun:
    """A training that runs as a job, and whose folder is watched. The job is submitted at once."""

    def __init__(self, config: TrainConfig, nodes: LocalNodes):
        self.config, self.nodes = config, nodes
        self.path = config.run_dir / "submitted.yaml"
        save_config(config, self.path)
        self.submit()

    def submit(self) -> None:
        """Submits the run as a job, in a thread that ends with it."""
        self.job = threading.Thread(target=self._submit, daemon=True)
        self.job.start()

    def submit_again(self) -> None:
        """Starts a job that resumes the run once the first has died. It waits until the job has claimed the run.

        Until then, orphaned workers of the first may still log steps.
        """
        self.job.join()
        claim = self.claim()
        self.submit()
        self.wait(lambda: self.claim() != claim, "the run to be taken over")
        self.mark()

    def claim(self) -> bytes:
        """Returns the claim of the start that owns the run."""
        return (self.config.run_dir / CLAIM).read_bytes()

    def mark(self) -> None:
        """Notes how far the run is; lines that are logged from now on count as new."""
        lines = self.lines()
        self.num_marked, self.marked_step = len(lines), max((line["step"] for line in lines), default=0)
        checkpoint = latest_checkpoint(self.config.run_dir)
        self.marked_save = load_progress(checkpoint).step if checkpoint else 0
        self.num_orphans = sum(len(node.processes(TRAIN_WORKER)) for node in self.nodes.orphans)

    def new_lines(self) -> list[dict]:
        """Returns the lines that were logged since `mark`."""
        return self.lines()[self.num_marked :]

    def new_losses(self) -> list[dict]:
        """Returns the training steps that were logged since `mark`."""
        return [line for line in self.new_lines() if "loss" in line]

    def _submit(self) -> None:
        with (self.config.run_dir / "job.log").open("ab") as log:
            try:
                # in place: nodes on one machine share Ray's folder for copies, and delete each other's
                submit_job(self.nodes.cluster, "python", "-m", TRAIN_DRIVER, str(self.path), copied=False, output=log)
            except subprocess.CalledProcessError as error:
                log.write(f"{error}\n".encode())

    def finish(self) -> None:
        """Waits until the job has ended.

        Raises:
            RuntimeError: the training failed.
        """
        self.job.join()
        if not (self.config.run_dir / "training.json").is_file():
            raise RuntimeError(f"{self.config.run_dir}: the training failed; job.log there says why")

    def wait(self, condition: Callable[[], T], what: str, poll_s: float = 0.02) -> T:
        """Waits until `condition` returns something true, and returns that.

        Raises:
            RuntimeError: the job ended first.
            TimeoutError: the condition did not come true within WAIT_TIMEOUT_S.
        """

        def value_while_the_job_lives() -> T:
            alive = self.job.is_alive()
            value = condition()
            if not value and not alive:
                raise RuntimeError(f"{self.config.run_dir}: the job ended before {what}; job.log there says why")
            return value

        return wait_for(value_while_the_job_lives, what, WAIT_TIMEOUT_S, poll_s)

    def lines(self) -> list[dict]:
        """Returns the lines of metrics.jsonl that have a step."""
        return [line for line in read_lines(self.config.run_dir) if not TOLD & line.keys()]

    def last_step(self) -> int:
        """Returns the last step that was logged; 0 before the first."""
        return max((line["step"] for line in self.lines()), default=0)

    def saves(self, whole: bool) -> set[int]:
        """Returns the steps of the checkpoint folders that are whole, or of those that are not."""
        folders = (self.config.run_dir / CHECKPOINTS).glob("step-*")
        return {int(folder.name.removeprefix("step-")) for folder in folders if (folder / SUMS).is_file() == whole}

    def workers(self, besides: list[psutil.Process]) -> list[psutil.Process]:
        """Returns the training workers besides those of earlier groups; none until the group is complete."""
        workers = [process for process in self.nodes.processes(TRAIN_WORKER) if process not in besides]
        return workers if len(workers) >= self.config.num_workers else []

    def training_node(self) -> LocalNode:
        """Returns a node with a training worker."""
        return next(node for node in self.nodes.nodes if node.processes(TRAIN_WORKER))

    def decode_node(self) -> LocalNode | None:
        """Returns a node with a decode task and no training worker, if there is one now."""
        nodes = (node for node in self.nodes.nodes if node.processes(DECODE_WORKER) and not node.processes(TRAIN_WORKER))
        return next(nodes, None)
