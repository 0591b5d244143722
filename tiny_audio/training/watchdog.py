"""Finds workers that hang and ends them: workers report what they do to a small actor, and the driver asks it which are stuck.

A rank is to blame if it has done the same thing for too long and is behind the others, which may be waiting for it; or if
its reports stop, because its process is frozen or gone. Then all workers exit, and Ray Train starts them again from the
last checkpoint, up to `max_failures` times. None of this needs a barrier or asks anything of the device.
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
START_S = 1800.0  # longest time for one part of a worker's start, in which models are downloaded and layers compiled
BEAT_S = 1.0  # pause between two reports of a worker, and between two looks of the driver
NAME_FREE_S = 30.0  # longest wait until Ray has cleared away a killed job, whose run a new job takes over
EXIT_S = 5.0  # time that workers have to exit by themselves once a hang is found
SILENCE_WARNING_S = 60.0  # silence of all workers before the driver first warns; each further warning takes twice as long


@dataclass(frozen=True)
class Activity:
    """Describes what a worker is doing: its phase, its step, and the ids of the rows that it works on."""

    phase: str
    step: int = 0
    rows: tuple[str, ...] = ()


@dataclass
class WorkerRecord:
    """Holds what the actor knows of a worker; times are seconds of the actor's own clock."""

    pid: int
    node_id: str
    activity: Activity
    num_activities: int  # since its start: all workers do the same in turn, so the one with the fewest is behind
    changed_at: float  # when the activity last changed
    heard_at: float  # when the last report came


@dataclass(frozen=True)
class StuckWorker:
    """Describes a worker that is to blame for a hang."""

    rank: int
    pid: int
    node_id: str
    activity: Activity
    duration_s: float  # how long it has been at this activity
    frozen: bool  # its reports have stopped: the process stands still, or the node is gone


class Watch:
    """Keeps, in an actor, what all workers do and why they must exit, and judges which are stuck when the driver asks."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic):
        self.timeout_s, self.clock = timeout_s, clock
        self.workers: dict[int, WorkerRecord] = {}  # by rank
        self.ended: set[tuple[str, int]] = set()  # node and pid of workers whose late reports no longer count
        self.verdict = ""  # why the present workers must exit
        self.final = ""  # why the run must not be started again
        self.failures = ""  # which workers failed, for the start that follows
        self.heard_at = clock()  # when the last report of any worker came

    def beat(self, rank: int, pid: int, node_id: str, num_activities: int, activity: Activity) -> str:
        """Takes a worker's report; returns why the worker must exit, or an empty string."""
        now, worker = self.clock(), self.workers.get(rank)
        if (node_id, pid) in self.ended:
            return self.final or self.verdict
        if worker is None or (worker.node_id, worker.pid) != (node_id, pid):  # a worker of a new start
            if worker is not None:
                self.forget()
            worker = self.workers[rank] = WorkerRecord(pid, node_id, activity, num_activities, now, now)
        if worker.num_activities != num_activities:
            worker.activity, worker.num_activities, worker.changed_at = activity, num_activities, now
        worker.heard_at = self.heard_at = now
        return self.final or self.verdict

    def forget(self, rank: int | None = None) -> None:
        """Drops the worker of a rank, or all workers, because they have ended."""
        for ended_rank in list(self.workers) if rank is None else [rank] * (rank in self.workers):
            worker = self.workers.pop(ended_rank)
            self.ended.add((worker.node_id, worker.pid))

    def fail(self, causes: dict[int, str]) -> None:
        """Records which ranks failed and why, and drops all workers; of several calls for one start, the first counts."""
        last = {rank: worker.activity for rank, worker in self.workers.items()}
        where = {rank: f", last heard of {activity.phase} at step {activity.step}" for rank, activity in last.items()}
        failures = "; ".join(f"rank {rank}: {cause}{where.get(rank, '')}" for rank, cause in causes.items())
        self.failures = self.failures or failures
        self.forget()

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
                overdue.append(StuckWorker(rank, worker.pid, worker.node_id, worker.activity, duration_s, frozen))
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
        pid, node_id = os.getpid(), ray.get_runtime_context().get_node_id()
        while not self.closed.wait(BEAT_S):
            try:
                verdict = ray.get(self.watch.beat.remote(self.rank, pid, node_id, self.num_activities, self.activity))
            except ray.exceptions.ActorDiedError:
                return  # the driver is gone, and Ray ends its workers
            except ray.exceptions.RayError:
                continue  # a network error: the next report is due in a second
            if verdict and not self.closed.wait(EXIT_S):
                print(f"rank {self.rank} exits: {verdict}", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(2)  # writes the stacks of all threads to the worker's log
                os._exit(1)


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


def hang_message(stuck: list[StuckWorker], files_of_step: Callable[[int], str]) -> str:
    """Says in one line which workers are stuck, at what and with which rows, and what to do about it.

    Args:
        files_of_step: names the files that must be read before workers get a step's rows.
    """
    facts = []
    for worker in stuck:
        activity, frozen = worker.activity, "its process stands still or is gone; it " if worker.frozen else ""
        rows = f" (rows {name_rows(list(activity.rows))})" if activity.rows else ""
        state = f"has been {activity.phase} for {worker.duration_s:.0f} s at step {activity.step}"
        facts.append(f"rank {worker.rank}: {frozen}{state}{rows}")
    for step in sorted({worker.activity.step for worker in stuck if worker.activity.phase == DATA}):
        facts.append(f"step {step}, and what is fetched with it, is read from {files_of_step(step)}")
    data_hangs = all(worker.activity.phase == DATA and not worker.frozen for worker in stuck)
    storage_remedy = "look at that storage and the decode nodes, whose logs name slow files"
    remedy = storage_remedy if data_hangs else "look at that worker's log and node"
    return f"the run stood still: {'; '.join(facts)}; {remedy}, or raise watchdog_timeout_s if this may take so long"


def silence_message(silence_s: float, failures: str) -> str:
    """Says in one line that no worker reports, and what to do: most often, Ray is waiting for resources to start them."""
    after = f", since some failed ({failures})" if failures else ""
    remedy = "ray status says what is asked for, and what there is; with min_workers, or a lower one, a run goes on with fewer"
    return f"no worker has been heard of for {silence_s:.0f} s{after}; {remedy}"


def _print_error(line: str) -> None:
    with suppress(OSError):  # a log on a full disk must not end the thread that watches the run
        print(line, file=sys.stderr, flush=True)


class HangFollower:
    """Asks the actor once a second, from the driver, whether workers hang; if so, prints which ones and ends all of them."""

    def __init__(self, watch, files_of_step: Callable[[int], str]):
        self.watch, self.files_of_step = watch, files_of_step
        self.next_warning_s = SILENCE_WARNING_S  # length of silence at which the driver warns next
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
            with suppress(ray.exceptions.RayError):  # a network error: the next look is due in a second
                stuck = ray.get(self.watch.stuck.remote())
                if stuck:
                    self._end_workers(stuck)
                self._warn_of_silence(*ray.get(self.watch.silence.remote()))

    def _warn_of_silence(self, silence_s: float, failures: str) -> None:
        if silence_s >= self.next_warning_s:
            _print_error(silence_message(silence_s, failures))
            self.next_warning_s *= 2
        elif silence_s < SILENCE_WARNING_S:
            self.next_warning_s = SILENCE_WARNING_S

    def _end_workers(self, stuck: list[StuckWorker]) -> None:
        message = hang_message(stuck, self.files_of_step)
        _print_error(message)
        ray.get(self.watch.expel.remote(message))
        self._kill_stuck(stuck)

    def _kill_stuck(self, stuck: list[StuckWorker]) -> None:
        """Kills the stuck processes: a frozen one cannot exit by itself, and Ray's own request to exit would not reach it."""
        if not all(worker.frozen for worker in stuck):
            self.closed.wait(2 * EXIT_S)
        for worker in stuck:
            its_node = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
            ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=its_node).remote(worker.pid)
