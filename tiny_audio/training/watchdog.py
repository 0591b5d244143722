"""Hangs, found and ended: each worker tells what it does, a small actor keeps it, and the driver judges and says who stopped.

A rank is to blame when it has done the same for too long and is behind the others, who may wait for it; or when it is
not heard of at all, because its process is frozen, or gone. Then all workers leave, and Ray Train starts them again from the last
checkpoint, `max_failures` times. On the way there is no barrier, and nothing is asked of the device.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tiny_audio.config import require
from tiny_audio.counts import name_rows
from tiny_audio.ray_names import TRAIN_WORKER, is_lost_process

STARTING, DATA, COMPUTING, GRADIENTS = "starting", "waiting for data", "computing", "computing gradients"
VALIDATING, SAVING = "validating", "saving"
OTHERS = "waiting for the other workers"
START_S = 1800.0  # that a worker may be at one part of its start: models may have to be fetched, layers compiled
BEAT_S = 1.0
LEAVE_RUN_S = 30.0  # that Ray has to clear away a job that was killed, before the next takes its run over
LEAVE_S = 5.0  # that workers have to leave by themselves once a hang is found
SILENCE_TOLD_S = 60.0  # in which no worker was heard of, until the driver says so; then after twice that, and so on


@dataclass(frozen=True)
class Doing:
    """What a worker does: its phase, the step that it is at, and the ids of the rows in hand."""

    phase: str
    step: int = 0
    rows: tuple[str, ...] = ()


@dataclass
class Seen:
    """What the actor knows of a worker; times are its own clock's."""

    pid: int
    node_id: str
    doing: Doing
    number: int  # of changes: all workers do the same in turn, so who has fewest is behind
    changed: float
    heard: float


@dataclass(frozen=True)
class Stuck:
    """A rank that stopped, and for how long."""

    rank: int
    pid: int
    node_id: str
    doing: Doing
    since_s: float
    frozen: bool  # not heard of: its process stands still, or its node is gone


class Watch:
    """The actor's state: what all workers do, and why they must leave. Judges only when asked."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic):
        self.timeout_s, self.clock = timeout_s, clock
        self.workers: dict[int, Seen] = {}
        self.ended: set[tuple[str, int]] = set()  # node and pid of workers that may still speak, and no longer count
        self.verdict = ""  # why the present workers must leave
        self.final = ""  # why the run must not be started again
        self.failed = ""  # which workers did, for the start that follows
        self.heard = clock()  # when any worker was last heard of

    def beat(self, rank: int, pid: int, node_id: str, number: int, doing: Doing) -> str:
        """Takes in what a worker does; returns why it must leave, if so."""
        now, seen = self.clock(), self.workers.get(rank)
        if (node_id, pid) in self.ended:
            return self.final or self.verdict
        if seen is None or (seen.node_id, seen.pid) != (node_id, pid):  # a worker of a new start
            if seen is not None:
                self.forget()
            seen = self.workers[rank] = Seen(pid, node_id, doing, number, now, now)
        if seen.number != number:
            seen.doing, seen.number, seen.changed = doing, number, now
        seen.heard = self.heard = now
        return self.final or self.verdict

    def forget(self, rank: int | None = None) -> None:
        """These workers have ended: one, or all."""
        for gone in list(self.workers) if rank is None else [rank] * (rank in self.workers):
            seen = self.workers.pop(gone)
            self.ended.add((seen.node_id, seen.pid))

    def fail(self, causes: dict[int, str]) -> None:
        """Workers have failed, by rank: all have ended. Where it is said more than once, the first time tells most."""
        doing = {rank: f", last heard of {seen.doing.phase} at step {seen.doing.step}" for rank, seen in self.workers.items()}
        said = "; ".join(f"rank {rank}: {cause}{doing.get(rank, '')}" for rank, cause in causes.items())
        self.failed = self.failed or said
        self.forget()

    def begin(self) -> str:
        """All start anew; returns which of those before failed: none where they end to be more or fewer."""
        self.forget()
        failed, self.failed, self.verdict = self.failed, "", ""
        return failed

    def silence(self) -> tuple[float, str]:
        """For how many seconds no worker has been heard of, and which failed before."""
        return self.clock() - self.heard, self.failed

    def stuck(self) -> list[Stuck]:
        """The ranks to blame: those behind all others, once each has stood still for too long; or those not heard of.

        None once the workers were told to leave.
        """
        now, overdue = self.clock(), []
        least = min((seen.number for seen in self.workers.values()), default=0)
        for rank, seen in sorted(self.workers.items()):
            allowed_s = max(START_S, self.timeout_s) if seen.doing.phase == STARTING else self.timeout_s
            frozen = now - seen.heard > self.timeout_s
            if frozen or now - seen.changed > allowed_s:
                overdue.append(Stuck(rank, seen.pid, seen.node_id, seen.doing, now - seen.changed, frozen))
        if self.verdict:
            return []
        behind = [rank for rank, seen in self.workers.items() if seen.number == least]
        waited_for = [one for one in overdue if one.rank in behind]
        return [one for one in overdue if one.frozen] or (waited_for if len(waited_for) == len(behind) else [])

    def expel(self, verdict: str) -> None:
        """Tells all workers to leave."""
        self.verdict = verdict

    def end(self, reason: str) -> None:
        """Tells all workers to leave, and not to start again. The first reason counts."""
        self.final = self.final or reason

    def reasons(self) -> tuple[str, str]:
        """Why the run must not be started again, and why the last workers were told to leave."""
        return self.final, self.verdict


def start_watch(timeout_s: float, run_dir: str):
    """The actor, on the driver's node: without that one there is no run. A run has one: two would write to one folder.

    Raises:
        ConfigError: another job of this cluster trains the run, and goes on doing so.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # without a record of each call on the head: they come every second for as long as a run lasts
    how = {"num_cpus": 0, "scheduling_strategy": here, "enable_task_events": False}
    how |= {"max_restarts": -1, "max_task_retries": -1}  # its process may die; it ends with the driver
    actor = ray.remote(**how)(Watch).options(name=run_dir, namespace="tiny_audio runs")
    until = time.monotonic() + LEAVE_RUN_S
    while True:
        try:
            return actor.remote(timeout_s)
        except ValueError:  # the name is taken
            busy = f"{run_dir}: another job on this cluster trains this run; stop it first (ray job stop), or choose another name"
            require(time.monotonic() < until, busy)
            time.sleep(BEAT_S)


class Watchdog:
    """A worker's side: what it does is told to the actor once a second, from a thread. Used as a context."""

    def __init__(self, watch, rank: int):
        self.watch, self.rank = watch, rank
        self.number, self.doing = 0, Doing(STARTING)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True, name="watchdog")

    def __enter__(self) -> Watchdog:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.closed.set()
        self.watch.forget.remote(self.rank)

    def tell(self, phase: str, step: int = 0, rows: list[str] | tuple[str, ...] = ()) -> None:
        """Says what the worker begins to do now."""
        self.doing = Doing(phase, step, tuple(rows))
        self.number += 1

    def _tell(self) -> None:
        pid, node_id = os.getpid(), ray.get_runtime_context().get_node_id()
        while not self.closed.wait(BEAT_S):
            try:
                verdict = ray.get(self.watch.beat.remote(self.rank, pid, node_id, self.number, self.doing))
            except ray.exceptions.ActorDiedError:
                return  # the driver is gone, and Ray ends its workers
            except ray.exceptions.RayError:
                continue  # of the network
            if verdict and not self.closed.wait(LEAVE_S):
                print(f"rank {self.rank} leaves: {verdict}", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(2)  # of all threads, to the worker's log
                os._exit(1)


class FailedWorkers(UserCallback):
    """Ray Train's controller says when workers have failed: they are not missed then."""

    def __init__(self, watch):
        self.watch = watch

    def after_exception(self, run_context, worker_exceptions) -> None:
        self.watch.fail.remote(first_failures(worker_exceptions))


def first_failures(errors: dict[int, Exception]) -> dict[int, str]:
    """The ranks that failed, and how; where processes have died, these alone: the others failed for want of them."""
    died = {rank: "its process died" for rank, error in errors.items() if is_lost_process(error)}
    return died or {rank: f"{type(error).__name__}: {str(error).partition(chr(10))[0]}" for rank, error in errors.items()}


def _kill(pid: int) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has left
        if TRAIN_WORKER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def hang_message(stuck: list[Stuck], files_of_step: Callable[[int], str]) -> str:
    """One line: who stopped, at what, with which rows, and what to do.

    Args:
        files_of_step: names what must be read before workers get their rows of a step.
    """
    said = []
    for one in stuck:
        frozen = "its process stands still or is gone; it " if one.frozen else ""
        rows = f" (rows {name_rows(list(one.doing.rows))})" if one.doing.rows else ""
        said.append(f"rank {one.rank}: {frozen}has been {one.doing.phase} for {one.since_s:.0f} s at step {one.doing.step}{rows}")
    for step in sorted({one.doing.step for one in stuck if one.doing.phase == DATA}):
        said.append(f"step {step}, and what is fetched with it, is read from {files_of_step(step)}")
    waits = all(one.doing.phase == DATA and not one.frozen for one in stuck)
    storage, worker = "that storage and the decode nodes, whose logs name a file that is slow", "that worker's log and node"
    remedy = f"look at {storage if waits else worker}"
    return f"the run stood still: {'; '.join(said)}; {remedy}, or raise watchdog_timeout_s if this may take so long"


def silence_message(silence_s: float, failed: str) -> str:
    """One line, for a run whose workers are not there: most often, Ray waits for room to start them."""
    after = f", since some failed ({failed})" if failed else ""
    remedy = "ray status says what is asked for, and what there is; with min_workers, or a lower one, a run goes on with fewer"
    return f"no worker has been heard of for {silence_s:.0f} s{after}; {remedy}"


def _say(line: str) -> None:
    with suppress(OSError):  # a log whose disk is full must not end what watches the run
        print(line, file=sys.stderr, flush=True)


class HangFollower:
    """The driver's side: judges once a second, from a thread, says what it finds, and ends the workers. Used as a context."""

    def __init__(self, watch, files_of_step: Callable[[int], str]):
        self.watch, self.files_of_step = watch, files_of_step
        self.told_next_s = SILENCE_TOLD_S  # how long a silence must be, to be told next
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True, name="hangs")

    def __enter__(self) -> HangFollower:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.closed.set()
        self.thread.join()

    def _follow(self) -> None:
        while not self.closed.wait(BEAT_S):
            with suppress(ray.exceptions.RayError):  # of the network: asked again in a second
                stuck = ray.get(self.watch.stuck.remote())
                if stuck:
                    self._end(stuck)
                self._tell_of_silence(*ray.get(self.watch.silence.remote()))

    def _tell_of_silence(self, silence_s: float, failed: str) -> None:
        if silence_s >= self.told_next_s:
            _say(silence_message(silence_s, failed))
            self.told_next_s *= 2
        elif silence_s < SILENCE_TOLD_S:
            self.told_next_s = SILENCE_TOLD_S

    def _end(self, stuck: list[Stuck]) -> None:
        message = hang_message(stuck, self.files_of_step)
        _say(message)
        ray.get(self.watch.expel.remote(message))
        self._end_those_that_stay(stuck)

    def _end_those_that_stay(self, stuck: list[Stuck]) -> None:
        """A process that stands still cannot leave by itself, and Ray's own request to end would not reach it."""
        if not all(one.frozen for one in stuck):
            self.closed.wait(2 * LEAVE_S)
        for one in stuck:
            there = NodeAffinitySchedulingStrategy(one.node_id, soft=False)
            ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=there).remote(one.pid)
