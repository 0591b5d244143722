"""Finds workers that hang and ends them: workers report what they do to a small actor, and the driver asks it which are stuck.

A rank is to blame if it has done the same thing for too long and is behind the others, which may be waiting for it; or if
its reports stop, because its process is frozen or gone. Then all workers exit, and Ray Train starts them again from the
last checkpoint, up to `max_failures` times. None of this needs a barrier or asks anything of the device.

A worker whose reports do not get through ends itself: its host is cut off, or the driver is gone. Ray starts another in its
place, and does not end the one that it cannot reach. The driver's side is hang_follower.py.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tiny_audio.config import require

STARTING, DATA, COMPUTING, GRADIENTS = "starting", "waiting for data", "computing", "computing gradients"
VALIDATING, SAVING = "validating", "saving"
OTHERS = "waiting for the other workers"
START_S = 1800.0  # longest time for one part of a worker's start, in which models are downloaded and layers compiled
BEAT_S = 1.0  # pause between two reports of a worker, and between two looks of the driver
NAME_FREE_S = 30.0  # longest wait until Ray has cleared away a killed job, whose run a new job takes over
EXIT_S = 5.0  # time that workers have to exit by themselves once a hang is found
LOST_S = 45.0  # how long a worker's reports may not get through before it exits; Ray gives a host up after 15 s to a minute
ENDED = "its start of the run has ended"


@dataclass(frozen=True)
class Activity:
    """Describes what a worker is doing: its phase, its step, and the ids of the rows that it works on."""

    phase: str
    step: int = 0
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerProcess:
    """Describes where a worker runs. No two have the same token, not even one that is given the process id of another."""

    host: str
    pid: int
    node_id: str
    token: str


@dataclass
class WorkerRecord:
    """Holds what the actor knows of a worker; times are seconds of the actor's own clock."""

    process: WorkerProcess
    activity: Activity
    num_activities: int  # since its start: all workers do the same in turn, so the one with the fewest is behind
    changed_at: float  # when the activity last changed
    heard_at: float  # when the last report came


@dataclass(frozen=True)
class StuckWorker:
    """Describes a worker that is to blame for a hang."""

    rank: int
    process: WorkerProcess
    activity: Activity
    duration_s: float  # how long it has been at this activity
    frozen: bool  # its reports have stopped: the process stands still, or the node is gone


class Watch:
    """Keeps, in an actor, what all workers do and why they must exit, and judges which are stuck when the driver asks."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic):
        self.timeout_s, self.clock = timeout_s, clock
        self.workers: dict[int, WorkerRecord] = {}  # by rank
        self.ended: set[WorkerProcess] = set()  # whose late reports no longer count
        self.verdict = ""  # why the present workers must exit
        self.final = ""  # why the run must not be started again
        self.failures = ""  # which workers failed, for the start that follows
        self.heard_at = clock()  # when the last report of any worker came

    def beat(self, rank: int, process: WorkerProcess, num_activities: int, activity: Activity) -> str:
        """Takes a worker's report; returns why the worker must exit, or an empty string."""
        now, worker = self.clock(), self.workers.get(rank)
        if process in self.ended:
            return self.final or self.verdict or ENDED
        if worker is None or worker.process != process:  # a worker of a new start
            if worker is not None:
                self.forget()
            worker = self.workers[rank] = WorkerRecord(process, activity, num_activities, now, now)
        if worker.num_activities != num_activities:
            worker.activity, worker.num_activities, worker.changed_at = activity, num_activities, now
        worker.heard_at = self.heard_at = now
        return self.final or self.verdict

    def forget(self, rank: int | None = None) -> None:
        """Drops the worker of a rank, or all workers, because they have ended."""
        for ended_rank in list(self.workers) if rank is None else [rank] * (rank in self.workers):
            self.ended.add(self.workers.pop(ended_rank).process)

    def fail(self, causes: dict[int, str]) -> None:
        """Records which ranks failed and why, and drops all workers; of several calls for one start, the first counts."""
        self.failures = self.failures or "; ".join(self._failure(rank, cause) for rank, cause in causes.items())
        self.forget()

    def _failure(self, rank: int, cause: str) -> str:
        worker = self.workers.get(rank)
        if worker is None:
            return f"rank {rank}: {cause}"
        last = f"last heard of {worker.activity.phase} at step {worker.activity.step}"
        return f"rank {rank} on {worker.process.host}: {cause}, {last}"

    def begin(self) -> str:
        """Prepares for a new start of all workers; returns which failed before it, or "" if only their number changes."""
        self.forget()
        failures, self.failures, self.verdict = self.failures, "", ""
        return failures

    def silence(self) -> tuple[float, str]:
        """Returns the seconds since the last report of any worker, and which workers failed before."""
        return self.clock() - self.heard_at, self.failures

    def stuck(self) -> list[StuckWorker]:
        """Returns the workers to blame for a hang, or an empty list.

        These are the workers whose reports stopped; else those behind all others, once every one of these has been at the
        same activity for too long. Nobody is blamed once the workers were told to exit.
        """
        if self.verdict:
            return []
        now, overdue = self.clock(), []
        for rank, worker in sorted(self.workers.items()):
            allowed_s = max(START_S, self.timeout_s) if worker.activity.phase == STARTING else self.timeout_s
            frozen, duration_s = now - worker.heard_at > self.timeout_s, now - worker.changed_at
            if frozen or duration_s > allowed_s:
                overdue.append(StuckWorker(rank, worker.process, worker.activity, duration_s, frozen))
        fewest = min((worker.num_activities for worker in self.workers.values()), default=0)
        behind = [rank for rank, worker in self.workers.items() if worker.num_activities == fewest]
        overdue_behind = [worker for worker in overdue if worker.rank in behind]
        all_overdue = len(overdue_behind) == len(behind)
        return [worker for worker in overdue if worker.frozen] or (overdue_behind if all_overdue else [])

    def expel(self, verdict: str) -> None:
        """Tells all workers to exit."""
        self.verdict = verdict

    def end(self, reason: str) -> None:
        """Tells all workers to exit and not to be started again; the first reason counts."""
        self.final = self.final or reason

    def reasons(self) -> tuple[str, str]:
        """Returns why the run must not be started again, and why the last workers were told to exit; either may be empty."""
        return self.final, self.verdict


def start_watch(timeout_s: float, run_dir: str):
    """Starts the actor, on the driver's node, and returns its handle. It has the run's name: two jobs cannot train one run.

    Raises:
        ConfigError: another job on this cluster trains the run, and does not end within NAME_FREE_S.
    """
    drivers_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # No task events: the head would record a call every second from every worker, for as long as the run lasts.
    options = {"num_cpus": 0, "scheduling_strategy": drivers_node, "enable_task_events": False}
    options |= {"max_restarts": -1, "max_task_retries": -1}  # survives the death of its process; ends with the driver
    actor = ray.remote(**options)(Watch).options(name=run_dir, namespace="tiny_audio runs")
    deadline = time.monotonic() + NAME_FREE_S
    while True:
        try:
            return actor.remote(timeout_s)
        except ValueError:  # the name is taken
            busy = f"{run_dir}: another job on this cluster trains this run; stop it first (ray job stop), or choose another name"
            require(time.monotonic() < deadline, busy)
            time.sleep(BEAT_S)


class Watchdog:
    """Reports what a worker does to the actor once a second, from a thread, while the context lasts."""

    def __init__(self, watch, rank: int):
        self.watch, self.rank = watch, rank
        self.num_activities, self.activity = 0, Activity(STARTING)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._report, daemon=True, name="watchdog")

    def __enter__(self) -> Watchdog:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.closed.set()
        self.watch.forget.remote(self.rank)

    def tell(self, phase: str, step: int = 0, rows: list[str] | tuple[str, ...] = ()) -> None:
        """Sets what the worker does from now on."""
        self.activity = Activity(phase, step, tuple(rows))
        self.num_activities += 1

    def _report(self) -> None:
        process = WorkerProcess(socket.gethostname(), os.getpid(), ray.get_runtime_context().get_node_id(), uuid.uuid4().hex)
        reached_at = time.monotonic()
        while not self.closed.wait(BEAT_S):
            try:
                report = self.watch.beat.remote(self.rank, process, self.num_activities, self.activity)
                verdict, reached_at = ray.get(report, timeout=EXIT_S), time.monotonic()
            except ray.exceptions.RayError:  # the next report is due in a second
                lost_s = time.monotonic() - reached_at
                if lost_s > LOST_S:
                    self._exit(f"the driver has not been reached for {lost_s:.0f} s: it has ended, or this host is cut off")
            else:
                if verdict and not self.closed.wait(EXIT_S):
                    self._exit(verdict)

    def _exit(self, reason: str) -> None:
        print(f"rank {self.rank} exits: {reason}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(2)  # writes the stacks of all threads to the worker's log
        os._exit(1)
