"""The driver's side of the watchdog: it learns of hangs and failures, says what is wrong where, and ends what must end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tiny_audio.config import ConfigError
from tiny_audio.counts import name_rows
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.ray_names import TRAIN_WORKER, is_lost_process
from tiny_audio.run.claim import TAKEN_OVER, has_claim
from tiny_audio.storage import said_in_one_line, without_secrets
from tiny_audio.training.places import Lack, find_lacks, live_nodes, missing_decode_nodes
from tiny_audio.training.resolved import ResolvedRun
from tiny_audio.training.watchdog import BEAT_S, DATA, EXIT_S, StuckWorker

SILENCE_WARNING_S = 60.0  # silence of all workers before the driver first warns; each further warning takes twice as long
LOOK_S = 10.0  # pause between two looks at the decode nodes, and at the claim on the run's folder


class FailedWorkers(UserCallback):
    """Tells the actor which workers Ray Train's controller saw fail, so that their silence is not taken for a hang."""

    def __init__(self, watch):
        self.watch = watch

    def after_exception(self, run_context, worker_exceptions) -> None:
        self.watch.fail.remote(first_failures(worker_exceptions))


def first_failures(errors: dict[int, Exception]) -> dict[int, str]:
    """Returns the cause of each rank's failure; if processes died, only theirs: the other ranks failed because of them."""
    died = {rank: "its process died" for rank, error in errors.items() if is_lost_process(error)}
    return died or {rank: f"{type(error).__name__}: {str(error).partition(chr(10))[0]}" for rank, error in errors.items()}


def _kill(pid: int) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has exited
        if TRAIN_WORKER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def hang_message(stuck: list[StuckWorker], files_of_step: Callable[[int], str], missing_nodes: str = "") -> str:
    """Says in one line which workers are stuck where, at what and with which rows, and what to do about it.

    Args:
        files_of_step: names the files that must be read before workers get a step's rows.
        missing_nodes: says that no decode node is up, and the remedy; empty while there is one.
    """
    facts = []
    for worker in stuck:
        activity, frozen = worker.activity, "its process stands still or is gone; it " if worker.frozen else ""
        rows = f" (rows {name_rows(list(activity.rows))})" if activity.rows else ""
        state = f"has been {activity.phase} for {worker.duration_s:.0f} s at step {activity.step}"
        facts.append(f"rank {worker.rank} on {worker.process.host}: {frozen}{state}{rows}")
    data_hangs = all(worker.activity.phase == DATA and not worker.frozen for worker in stuck)
    if data_hangs and missing_nodes:
        return f"the run stood still: {'; '.join(facts)}; {missing_nodes}"
    for step in sorted({worker.activity.step for worker in stuck if worker.activity.phase == DATA}):
        facts.append(f"step {step}, and what is fetched with it, is read from {files_of_step(step)}")
    storage_remedy = "look at that storage and the decode nodes, whose logs name slow files"
    remedy = storage_remedy if data_hangs else "look at that worker's log and node"
    return f"the run stood still: {'; '.join(facts)}; {remedy}, or raise watchdog_timeout_s if this may take so long"


def silence_message(silence_s: float, failures: str, lacks: list[Lack]) -> str:
    """Says in one line that no worker reports, and what to do: most often, Ray is waiting for resources to start them."""
    after = f", since some failed ({failures})" if failures else ""
    remedy = "ray status says what is asked for, and what there is"
    if lacks:
        remedy = f"{lacks[0].detail}; {lacks[0].remedy}"
    elastic = "with min_workers, or a lower one, a run goes on with fewer"
    return f"no worker has been heard of for {silence_s:.0f} s{after}; {remedy}; {elastic}"


def _files_of_step(plan: TrainingPlan, step: int) -> str:
    """Names the files that must be read before workers get their rows of a step: those of its window."""
    (window,) = plan.windows(num_steps=step + 1, start_step=step)
    return name_rows(list(dict.fromkeys(without_secrets(part.path) for part in window.slices)))


def _print_error(line: str) -> None:
    with suppress(OSError):  # a log on a full disk must not end the thread that watches the run
        print(line, file=sys.stderr, flush=True)


class Reminder:
    """Says when to warn of something that lasts: after `first_s`, and then whenever it has lasted twice as long."""

    def __init__(self, first_s: float):
        self.first_s = self.next_s = first_s

    def is_due(self, duration_s: float) -> bool:
        """Says whether to warn now that it has lasted `duration_s`, which falls below `first_s` once it is over."""
        if duration_s < self.first_s:
            self.next_s = self.first_s
        is_due = duration_s >= self.next_s
        if is_due:
            self.next_s *= 2
        return is_due


class HangFollower:
    """Asks the actor once a second, from the driver, whether workers hang; if so, prints which ones and ends all of them.

    Now and then it looks for the decode nodes too. Another thread looks whether a later start has taken the run over, which
    ends this one: storage that hangs must not keep the first thread from saying so.
    """

    def __init__(self, watch, run: ResolvedRun):
        self.watch, self.run = watch, run
        self.silence = Reminder(SILENCE_WARNING_S)
        self.no_decode_node = Reminder(LOOK_S)
        self.missing_nodes = ""  # says that no decode node is up
        self.looked_at = self.decode_node_at = time.monotonic()  # when it last looked; when there last was a decode node
        self.is_owner = False  # of the run's folder
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True, name="hangs")
        self.claim_thread = threading.Thread(target=self._follow_claim, daemon=True, name="claim")

    def __enter__(self) -> HangFollower:
        self.thread.start()
        self.claim_thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.closed.set()
        self.thread.join()  # but not the other thread, which storage may hold

    def _follow(self) -> None:
        while not self.closed.wait(BEAT_S):
            with suppress(ray.exceptions.RayError):  # a network error: the next look is due in a second
                if time.monotonic() - self.looked_at >= LOOK_S:
                    self.looked_at = time.monotonic()
                    self._look_for_decode_nodes()
                stuck = ray.get(self.watch.stuck.remote())
                if stuck:
                    self._end_workers(stuck)
                silence_s, failures = ray.get(self.watch.silence.remote())
                if self.silence.is_due(silence_s):
                    _print_error(silence_message(silence_s, failures, find_lacks(live_nodes(), self.run.config)))

    def _look_for_decode_nodes(self) -> None:
        label = self.run.config.data.decode_label
        self.missing_nodes = missing_decode_nodes(label) if label else ""
        if not self.missing_nodes:
            self.decode_node_at = self.looked_at
        if self.no_decode_node.is_due(self.looked_at - self.decode_node_at):
            _print_error(self.missing_nodes)

    def _follow_claim(self) -> None:
        while not self.closed.wait(LOOK_S):
            with suppress(ConfigError), said_in_one_line(self.run.folder):  # the workers tell of storage that fails
                has_it = has_claim(self.run.folder, self.run.claim)
                if self.is_owner and not has_it:
                    ray.get(self.watch.end.remote(TAKEN_OVER))
                self.is_owner = self.is_owner or has_it

    def _end_workers(self, stuck: list[StuckWorker]) -> None:
        message = hang_message(stuck, partial(_files_of_step, self.run.plan), self.missing_nodes)
        _print_error(message)
        ray.get(self.watch.expel.remote(message))
        self._kill_stuck(stuck)

    def _kill_stuck(self, stuck: list[StuckWorker]) -> None:
        """Kills the stuck processes: a frozen one cannot exit by itself, and Ray's own request to exit would not reach it."""
        if not all(worker.frozen for worker in stuck):
            self.closed.wait(2 * EXIT_S)
        for worker in stuck:
            its_node = NodeAffinitySchedulingStrategy(worker.process.node_id, soft=False)
            ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=its_node).remote(worker.process.pid)
