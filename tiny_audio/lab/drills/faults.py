"""The faults that the chaos drill injects into a training: what is killed, frozen or damaged, and at which moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psutil

from tiny_audio.lab.drills.monitored_run import MonitoredRun
from tiny_audio.lab.local_nodes import kill
from tiny_audio.lab.process_names import DECODE_WORKER, TRAIN_DRIVER
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.checkpoint import WEIGHTS, latest_checkpoint

SAVE_POLL_S = 0.001  # a checkpoint of the embedded backbones is written in some 20 ms
ATTEMPTS = 5  # at a moment that may be over before the kill comes

Moment = Callable[[MonitoredRun], Callable[[], bool]]  # marks the run; returns whether the moment is now


def _in_a_step(run: MonitoredRun) -> Callable[[], bool]:
    """The last new line is a step that neither a validation nor a save follows."""
    run.mark()

    def is_now() -> bool:
        new, intervals = run.new_lines(), (run.config.eval_every, run.config.checkpoint_every)
        return bool(new) and "loss" in new[-1] and all(new[-1]["step"] % interval for interval in intervals)

    return is_now


def _in_a_validation(run: MonitoredRun) -> Callable[[], bool]:
    """A validation is due, and its scores are not logged yet."""
    run.mark()

    def is_now() -> bool:
        new = run.new_lines()
        return bool(new) and "loss" in new[-1] and new[-1]["step"] % run.config.eval_every == 0

    return is_now


def _in_a_save(run: MonitoredRun) -> Callable[[], bool]:
    """A new checkpoint's folder, later than every whole one, is there and is not whole."""
    before = run.saves(whole=False)
    return lambda: any(step > max(run.saves(whole=True), default=0) for step in run.saves(whole=False) - before)


def _kill_workers(run: MonitoredRun, num_workers: int, moment: Moment, poll_s: float = 0.02) -> int:
    """Kills workers at a moment. If the kill came too late, tries again once the run has gone on."""
    killed: list[psutil.Process] = []
    for _ in range(ATTEMPTS):
        workers = run.wait(partial(run.workers, besides=killed), "all training workers")
        is_now = moment(run)
        run.wait(is_now, "the moment to kill a training worker", poll_s)
        num_killed = kill(workers[:num_workers])
        if is_now():
            return num_killed
        killed = killed + workers
    raise RuntimeError(f"{run.config.run_dir}: the kill came too late {ATTEMPTS} times")


def _kill_decode_workers(run: MonitoredRun) -> int:
    return run.wait(lambda: kill(run.nodes.processes(DECODE_WORKER)), "a decode task")


def _lose_decode_node(run: MonitoredRun) -> int:
    """Kills the training workers, because their restart decodes ahead; then kills a node that decodes."""
    kill(run.nodes.processes(TRAIN_WORKER))
    node = run.wait(run.decode_node, "a decode task on a node that does not train")
    return run.nodes.lose(node)


def _lose_training_node(run: MonitoredRun) -> int:
    return run.nodes.lose(run.training_node())


def _freeze_a_worker(run: MonitoredRun) -> int:
    """Suspends a worker, which then neither works nor dies until the watchdog ends it."""
    run.wait(partial(run.workers, besides=[]), "all training workers")[0].suspend()
    return 1


def _kill_driver(run: MonitoredRun) -> int:
    return kill(run.nodes.processes(TRAIN_DRIVER))


def _kill_driver_and_damage_a_checkpoint(run: MonitoredRun) -> int:
    """Kills the driver, then flips a bit in the weights of the last checkpoint."""
    num_killed = _kill_driver(run)
    run.job.join()
    path = latest_checkpoint(run.config.run_dir) / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return num_killed


def _lose_head(run: MonitoredRun) -> int:
    return run.nodes.lose_head()


def _lose_all_nodes(run: MonitoredRun) -> int:
    return run.nodes.kill()


def _add_node(run: MonitoredRun) -> None:
    run.nodes.add()


def _restart_cluster(run: MonitoredRun) -> None:
    run.nodes.start()
    run.submit_again()


@dataclass(frozen=True)
class Fault:
    """Something that breaks, and its repair.

    `inject` waits for its moment, breaks it, and returns the number of processes it hit. `repair` does what people or
    their cluster would do.
    """

    name: str
    inject: Callable[[MonitoredRun], int]
    repair: Callable[[MonitoredRun], None] = lambda run: None


FAULTS = (  # decode workers first: a start decodes far ahead, and after it there may be nothing to decode for long
    Fault("the decode workers, at work", _kill_decode_workers),
    Fault("a training worker, in a step", lambda run: _kill_workers(run, 1, _in_a_step)),
    Fault("a training worker, in a validation", lambda run: _kill_workers(run, 1, _in_a_validation)),
    Fault(
        "all training workers, in a checkpoint's write",
        lambda run: _kill_workers(run, run.config.num_workers, _in_a_save, SAVE_POLL_S),
    ),
    Fault("all training workers, then a node that decodes", _lose_decode_node, _add_node),
    Fault("a node that trains", _lose_training_node, _add_node),
    Fault("a training worker, frozen", _freeze_a_worker),
    Fault("the job's driver; submitted again", _kill_driver, MonitoredRun.submit_again),
    Fault("the driver, and a byte of the last checkpoint", _kill_driver_and_damage_a_checkpoint, MonitoredRun.submit_again),
    Fault("the head, its nodes left behind; started and submitted again", _lose_head, _restart_cluster),
    Fault("all nodes; started and submitted again", _lose_all_nodes, _restart_cluster),
)
