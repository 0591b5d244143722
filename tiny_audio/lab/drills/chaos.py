"""Strikes a training in every way it can die or hang, and holds what comes out against the same training left in peace.

Both run as jobs on a Ray of several nodes on this machine (see local_nodes.py). The one that was killed must have trained
every row of every epoch once, or rejected it; and at every step it must have the other's loss, to the last bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import psutil

from tiny_audio.config import TrainConfig, require
from tiny_audio.lab.drills.struck_run import DECODE_WORKER, DRIVER, Run
from tiny_audio.lab.local_nodes import LocalNodes, kill
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.audit import EpochAudit, audit
from tiny_audio.run.checkpoint import WEIGHTS, latest_checkpoint
from tiny_audio.run.metrics import read_metrics
from tiny_audio.storage import is_local

NUM_NODES = 3  # beside the head: one that trains, one that decodes, one to spare
NUM_EPOCHS = 4  # that the steps are made to cover: only finished epochs can be audited
SAVE_POLL_S = 0.001  # a checkpoint of the embedded backbones is written in some 20 ms
FROZEN_S = 45.0  # after which the watchdog ends a run that stands still
ATTEMPTS = 5  # at a moment that may be over before the kill comes


def _in_a_step(run: Run) -> Callable[[], bool]:
    """Whether the last thing that was logged, since now, is a step that neither a validation nor a save follows."""
    run.mark()

    def is_now() -> bool:
        new, intervals = run.new_lines(), (run.config.eval_every, run.config.checkpoint_every)
        return bool(new) and "loss" in new[-1] and all(new[-1]["step"] % interval for interval in intervals)

    return is_now


def _in_a_validation(run: Run) -> Callable[[], bool]:
    """Whether one is due, and its scores are not logged yet."""
    run.mark()

    def is_now() -> bool:
        new = run.new_lines()
        return bool(new) and "loss" in new[-1] and new[-1]["step"] % run.config.eval_every == 0

    return is_now


def _in_a_save(run: Run) -> Callable[[], bool]:
    """Whether a checkpoint's folder has come, later than all whole ones, and is not whole."""
    before = run.saves(whole=False)
    return lambda: any(step > max(run.saves(whole=True), default=0) for step in run.saves(whole=False) - before)


def _kill_workers(run: Run, num_workers: int, moment: Callable[[Run], Callable[[], bool]], poll_s: float = 0.02) -> int:
    """Kills so many at that moment. Where it was over before the kill came, tries again once the run has gone on."""
    gone: list[psutil.Process] = []
    for _ in range(ATTEMPTS):
        workers = run.wait(partial(run.workers, but=gone), "all training workers")
        is_now = moment(run)
        run.wait(is_now, "the moment to kill a training worker", poll_s)
        num_killed = kill(workers[:num_workers])
        if is_now():
            return num_killed
        gone = gone + workers
    raise RuntimeError(f"{run.config.run_dir}: the kill came too late {ATTEMPTS} times")


def _kill_decode_workers(run: Run) -> int:
    return run.wait(lambda: kill(run.nodes.processes(DECODE_WORKER)), "a decode task")


def _lose_decode_node(run: Run) -> int:
    """At a start of the workers, which decodes ahead."""
    kill(run.nodes.processes(TRAIN_WORKER))
    node = run.wait(run.decode_node, "a decode task on a node that does not train")
    return run.nodes.lose(node)


def _lose_training_node(run: Run) -> int:
    return run.nodes.lose(run.training_node())


def _freeze_a_worker(run: Run) -> int:
    """It neither works nor dies, until the watchdog ends it."""
    run.wait(partial(run.workers, but=[]), "all training workers")[0].suspend()
    return 1


def _kill_driver(run: Run) -> int:
    return kill(run.nodes.processes(DRIVER))


def _kill_driver_and_damage_a_checkpoint(run: Run) -> int:
    """The last one: a byte of its weights."""
    num_killed = _kill_driver(run)
    run.job.join()
    path = latest_checkpoint(run.config.run_dir) / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return num_killed


def _lose_head(run: Run) -> int:
    return run.nodes.lose_head()


def _lose_all_nodes(run: Run) -> int:
    return run.nodes.kill()


def _restart_cluster(run: Run) -> None:
    run.nodes.start()
    run.submit_again()


@dataclass(frozen=True)
class Kill:
    """Something that dies: `strike` waits for its moment, kills, and returns how many processes that were; `repair` does what
    people or their cluster would do.
    """

    name: str
    strike: Callable[[Run], int]
    repair: Callable[[Run], None] = lambda run: None


KILLS = (  # decode first: a start decodes far ahead, and then there may be nothing to do for long
    Kill("the decode workers, at work", _kill_decode_workers),
    Kill("a training worker, in a step", lambda run: _kill_workers(run, 1, _in_a_step)),
    Kill("a training worker, in a validation", lambda run: _kill_workers(run, 1, _in_a_validation)),
    Kill(
        "all training workers, in a checkpoint's write",
        lambda run: _kill_workers(run, run.config.num_workers, _in_a_save, SAVE_POLL_S),
    ),
    Kill("all training workers, then a node that decodes", _lose_decode_node, lambda run: run.nodes.add()),
    Kill("a node that trains", _lose_training_node, lambda run: run.nodes.add()),
    Kill("a training worker, frozen", _freeze_a_worker),
    Kill("the job's driver; submitted again", _kill_driver, Run.submit_again),
    Kill("the driver, and a byte of the last checkpoint", _kill_driver_and_damage_a_checkpoint, Run.submit_again),
    Kill("the head, its nodes left behind; started and submitted again", _lose_head, _restart_cluster),
    Kill("all nodes; started and submitted again", _lose_all_nodes, _restart_cluster),
)


@dataclass
class Struck:
    """A kill, and how the run came back."""

    name: str
    step: int  # the last one that was logged before
    save_step: int  # of the last whole checkpoint then
    num_orphans: int  # training workers of nodes whose head was lost, still there when the run was taken over
    back_at_step: int = 0  # the first one after: those between were trained again
    back_after_s: float = 0.0


@dataclass
class Outcome:
    """What the killed run came to. `unequal_steps` are those whose loss is not that of the run in peace."""

    kills: list[Struck]
    epochs: list[EpochAudit]
    unequal_steps: list[int]
    num_steps: int

    @property
    def nothing_lost(self) -> bool:
        return bool(self.epochs) and all(epoch.is_whole for epoch in self.epochs)


def steps_between(config: TrainConfig) -> int:
    """Kills."""
    return config.num_steps // (len(KILLS) + 1)


def chaos_config(config: TrainConfig, name: str) -> TrainConfig:
    """The training as it is put to the test: with checkpoints and validations between any two kills, and whole epochs.

    Raises:
        ConfigError: it wants GPUs, or has too few steps.
    """
    require(not config.use_gpu, "use_gpu=true: chaos runs on this machine's CPUs, where losses are equal to the last bit")
    require(is_local(config.run_dir), f"runs_dir={config.runs_dir}: chaos keeps its runs in a folder; name one")
    steps = steps_between(config)
    require(steps >= 6, f"num_steps={config.num_steps} leaves too few between {len(KILLS)} kills; give 72 or more")
    data = replace(config.data, max_train_rows=config.num_steps // NUM_EPOCHS * config.data.batch_rows)
    changes = {"log_every": 1, "checkpoint_every": steps // 3, "eval_every": steps // 2, "max_failures": 100}
    changes |= {"watchdog_timeout_s": FROZEN_S}
    return replace(config, name=f"{config.name}-{name}", data=data, trackers=[], early_stopping_patience=None, **changes)


def _strike(run: Run, one: Kill, due_step: int) -> Struck:
    """Waits for the step and the moment, kills, repairs, and waits until the run has gone on."""
    run.wait(lambda: run.last_step() >= due_step, f"step {due_step}")
    num_killed, struck = one.strike(run), time.time()
    run.mark()
    if not num_killed:
        raise RuntimeError(f"{one.name}: was gone before it could be killed")
    one.repair(run)
    first, *_ = run.wait(run.new_losses, f"the run to go on after the loss of {one.name}")
    return Struck(one.name, run.marked_step, run.marked_save, run.num_orphans, first["step"], first["unix_time"] - struck)


def _losses(config: TrainConfig) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(config.run_dir) if "loss" in line}


def chaos(config: TrainConfig, say: Callable[[str], None]) -> Outcome:
    """Trains twice, the second time with all of KILLS; leaves chaos.json in that run's folder.

    Args:
        say: told what happens, a line each.

    Raises:
        ConfigError: the config does not suit, or the folders of an earlier try are there.
        RuntimeError, TimeoutError: a run failed, or did not go on.
    """
    config = config.with_absolute_paths()
    in_peace, killed = (chaos_config(config, name) for name in ("in-peace", "killed"))
    for one in (in_peace, killed):
        require(not one.run_dir.exists(), f"{one.run_dir} is there from an earlier try: delete it, or choose another name")
    with LocalNodes(NUM_NODES, num_cpus=config.num_workers) as nodes:
        say(f"{in_peace.num_steps} steps in peace, on a head and {NUM_NODES} nodes ({in_peace.run_dir}/job.log)")
        Run(in_peace, nodes).finish()
        say(f"the same, and killed ({killed.run_dir}/job.log):")
        run, struck = Run(killed, nodes), []
        for number, one in enumerate(KILLS):
            last = _strike(run, one, number * steps_between(config))
            say(f"step {last.step:>5}  {last.name}: back after {last.back_after_s:.1f} s, at step {last.back_at_step}")
            struck.append(last)
        run.finish()
    expected, found = _losses(in_peace), _losses(killed)
    unequal = [step for step in sorted(expected | found) if expected.get(step) != found.get(step)]
    outcome = Outcome(struck, audit(killed), unequal, len(found))
    (killed.run_dir / "chaos.json").write_text(json.dumps(asdict(outcome), indent=1) + "\n")
    return outcome
