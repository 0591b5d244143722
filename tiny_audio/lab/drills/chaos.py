"""Breaks a training in every way it can die or hang, and compares it with the same training left alone.

Both run as jobs on a Ray of several nodes on this machine (see local_nodes.py). The broken one must have trained or
rejected every row of every epoch exactly once, and must have the other's loss at every step, to the last bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from tiny_audio.config import TrainConfig, require
from tiny_audio.lab.drills.faults import FAULTS, Fault
from tiny_audio.lab.drills.monitored_run import MonitoredRun
from tiny_audio.lab.local_nodes import LocalNodes
from tiny_audio.run.audit import EpochAudit, audit
from tiny_audio.run.metrics import read_metrics
from tiny_audio.storage import is_local, with_absolute_paths

NUM_NODES = 3  # besides the head: one that trains, one that decodes, one to spare
NUM_EPOCHS = 4  # that the steps cover: only finished epochs can be audited
WATCHDOG_TIMEOUT_S = 45.0  # after which the watchdog ends a run that hangs


@dataclass
class Recovery:
    """How the run went on after a fault."""

    name: str  # of the fault
    step: int  # the last step that was logged before it
    save_step: int  # of the last whole checkpoint then
    num_orphans: int  # training workers of nodes whose head was lost, alive when the next job claimed the run
    back_at_step: int = 0  # the first step after it: those from save_step to here were trained again
    back_after_s: float = 0.0


@dataclass
class Outcome:
    """What became of the broken run."""

    kills: list[Recovery]
    epochs: list[EpochAudit]
    unequal_steps: list[int]  # whose loss is not the baseline's
    num_steps: int

    @property
    def nothing_lost(self) -> bool:
        """Whether an epoch has finished, and every row of every finished epoch was trained or rejected exactly once."""
        return bool(self.epochs) and all(epoch.is_whole for epoch in self.epochs)


def steps_between_faults(config: TrainConfig) -> int:
    """Returns the number of steps from one fault to the next."""
    return config.num_steps // (len(FAULTS) + 1)


def drill_config(config: TrainConfig, name: str) -> TrainConfig:
    """Returns the config of the training in the drill: checkpoints and validations between any two faults, whole epochs.

    Raises:
        ConfigError: the config asks for GPUs or for a URL, or has too few steps.
    """
    require(not config.use_gpu, "use_gpu=true: chaos runs on this machine's CPUs, where losses are equal to the last bit")
    require(is_local(config.run_dir), f"runs_dir={config.runs_dir}: chaos keeps its runs in a folder; name one")
    steps = steps_between_faults(config)
    require(steps >= 6, f"num_steps={config.num_steps} leaves too few between {len(FAULTS)} faults; give 72 or more")
    data = replace(config.data, max_train_rows=config.num_steps // NUM_EPOCHS * config.data.batch_rows)
    changes = {"log_every": 1, "checkpoint_every": steps // 3, "eval_every": steps // 2, "max_failures": 100}
    changes |= {"watchdog_timeout_s": WATCHDOG_TIMEOUT_S}
    return replace(config, name=f"{config.name}-{name}", data=data, trackers=[], early_stopping_patience=None, **changes)


def _recovery(run: MonitoredRun, fault: Fault, due_step: int) -> Recovery:
    """Waits for the step, injects the fault, repairs it, and waits until the run has gone on."""
    run.wait(lambda: run.last_step() >= due_step, f"step {due_step}")
    num_processes, injected = fault.inject(run), time.time()
    run.mark()
    if not num_processes:
        raise RuntimeError(f"{fault.name}: ended before it could be killed")
    fault.repair(run)
    first, *_ = run.wait(run.new_losses, f"the run to go on after the loss of {fault.name}")
    back_after_s = first["unix_time"] - injected
    return Recovery(fault.name, run.marked_step, run.marked_save, run.num_orphans, first["step"], back_after_s)


def _losses(config: TrainConfig) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(config.run_dir) if "loss" in line}


def chaos(config: TrainConfig, print_line: Callable[[str], None]) -> Outcome:
    """Trains twice, the second time with all of FAULTS; leaves chaos.json in that run's folder.

    Args:
        print_line: gets a line for every event.

    Raises:
        ConfigError: the config does not suit, or the folders of an earlier drill exist.
        RuntimeError: a training failed, or a fault could not be injected.
        TimeoutError: a training did not go on.
    """
    config = with_absolute_paths(config)
    baseline, killed = (drill_config(config, name) for name in ("baseline", "killed"))
    for run_config in (baseline, killed):
        folder = run_config.run_dir
        require(not folder.exists(), f"{folder} is there from an earlier try: delete it, or choose another name")
    with LocalNodes(NUM_NODES, num_cpus=config.num_workers) as nodes:
        print_line(f"{baseline.num_steps} steps undisturbed, on a head and {NUM_NODES} nodes ({baseline.run_dir}/job.log)")
        MonitoredRun(baseline, nodes).finish()
        print_line(f"the same, and killed ({killed.run_dir}/job.log):")
        run, recoveries = MonitoredRun(killed, nodes), []
        for number, fault in enumerate(FAULTS):
            last = _recovery(run, fault, number * steps_between_faults(config))
            print_line(f"step {last.step:>5}  {last.name}: back after {last.back_after_s:.1f} s, at step {last.back_at_step}")
            recoveries.append(last)
        run.finish()
    outcome = _outcome(recoveries, baseline, killed)
    (killed.run_dir / "chaos.json").write_text(json.dumps(asdict(outcome), indent=1) + "\n")
    return outcome


def _outcome(recoveries: list[Recovery], baseline: TrainConfig, killed: TrainConfig) -> Outcome:
    expected, losses = _losses(baseline), _losses(killed)
    unequal_steps = [step for step in sorted(expected | losses) if expected.get(step) != losses.get(step)]
    return Outcome(recoveries, audit(killed), unequal_steps, len(losses))
