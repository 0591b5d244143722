"""A training under attack: it goes on as a job on a Ray of several nodes, and its folder says how far it is."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

import psutil

from tiny_audio.config import TrainConfig
from tiny_audio.config_files import save_config
from tiny_audio.lab.local_nodes import LocalNode, LocalNodes, wait_for
from tiny_audio.lab.local_ray import submit_job
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.checkpoint import CHECKPOINTS, SUMS, latest_checkpoint, load_progress
from tiny_audio.run.claim import CLAIM
from tiny_audio.run.metrics import read_lines

T = TypeVar("T")
MOMENT_TIMEOUT_S = 600.0
DECODE_WORKER, DRIVER = "_decode_window", "ray_jobs.train"  # in their processes' names


class Run:
    """A training that goes on as a job, and what its folder says of it."""

    def __init__(self, config: TrainConfig, nodes: LocalNodes):
        self.config, self.nodes = config, nodes
        self.path = config.run_dir / "submitted.yaml"
        save_config(config, self.path)
        self.submit()

    def submit(self) -> None:
        """Starts the job."""
        self.job = threading.Thread(target=self._submit, daemon=True)
        self.job.start()

    def submit_again(self) -> None:
        """Where it died: the same command goes on with the run. Until that takes the run over, orphans may log steps."""
        self.job.join()
        claim = self.claim()
        self.submit()
        self.wait(lambda: self.claim() != claim, "the run to be taken over")
        self.mark()

    def claim(self) -> bytes:
        return (self.config.run_dir / CLAIM).read_bytes()

    def mark(self) -> None:
        """From now on lines are new."""
        lines = self.lines()
        self.num_marked, self.marked_step = len(lines), max((line["step"] for line in lines), default=0)
        checkpoint = latest_checkpoint(self.config.run_dir)
        self.marked_save = load_progress(checkpoint).step if checkpoint else 0
        self.num_orphans = sum(len(node.processes(TRAIN_WORKER)) for node in self.nodes.orphans)

    def new_lines(self) -> list[dict]:
        return self.lines()[self.num_marked :]

    def new_losses(self) -> list[dict]:
        return [line for line in self.new_lines() if "loss" in line]

    def _submit(self) -> None:
        with (self.config.run_dir / "job.log").open("ab") as log:
            try:
                # not of a copy: nodes on one machine share Ray's folder of copies, and take them away from each other
                submit_job(self.nodes.cluster, "python", "-m", DRIVER, str(self.path), copied=False, output=log)
            except subprocess.CalledProcessError as error:
                log.write(f"{error}\n".encode())

    def finish(self) -> None:
        """Waits until the job is over.

        Raises:
            RuntimeError: it failed.
        """
        self.job.join()
        if not (self.config.run_dir / "training.json").is_file():
            raise RuntimeError(f"{self.config.run_dir}: the training failed; job.log there says why")

    def wait(self, condition: Callable[[], T], what: str, poll_s: float = 0.02) -> T:
        """Returns what the condition does, as soon as it is true.

        Raises:
            RuntimeError, TimeoutError: the job ended before, or it was not within MOMENT_TIMEOUT_S.
        """

        def found_at_work() -> T:
            alive = self.job.is_alive()
            found = condition()
            if not found and not alive:
                raise RuntimeError(f"{self.config.run_dir}: the job ended before {what}; job.log there says why")
            return found

        return wait_for(found_at_work, what, MOMENT_TIMEOUT_S, poll_s)

    def lines(self) -> list[dict]:
        return [line for line in read_lines(self.config.run_dir) if "warning" not in line]

    def last_step(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def saves(self, whole: bool) -> set[int]:
        """Steps of the checkpoint folders that are whole, or that are not."""
        folders = (self.config.run_dir / CHECKPOINTS).glob("step-*")
        return {int(folder.name.removeprefix("step-")) for folder in folders if (folder / SUMS).is_file() == whole}

    def workers(self, but: list[psutil.Process]) -> list[psutil.Process]:
        """The processes that train, without those that are gone; none while they are not complete."""
        found = [one for one in self.nodes.processes(TRAIN_WORKER) if one not in but]
        return found if len(found) >= self.config.num_workers else []

    def training_node(self) -> LocalNode:
        """One with a training worker."""
        return next(node for node in self.nodes.nodes if node.processes(TRAIN_WORKER))

    def decode_node(self) -> LocalNode | None:
        """One with a decode task and no training worker, if there is one now."""
        nodes = (node for node in self.nodes.nodes if node.processes(DECODE_WORKER) and not node.processes(TRAIN_WORKER))
        return next(nodes, None)
