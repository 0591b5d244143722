"""Hands a run's metrics to the trackers that its config names: TensorBoard, Weights & Biases, MLflow. Runs on the driver.

metrics.jsonl is the record; trackers get its lines as they come, beside the terminal. One that fails is given up with a
warning, and the run goes on. What they are told of the config is its keys and values: no environment variable, no
command line, no code, and no password in a URL.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.config import TrainConfig, one_line, require
from tiny_audio.storage import is_local, put, put_folder

PROJECT = "tiny_audio"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME say otherwise
IDS_FILE = "tracking.json"  # a run's ids at W&B and MLflow: resumed, it goes on there too
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True)
class Tracker:
    """A place that keeps metrics. `log` takes values and their step; `close`, whether the run failed."""

    log: Callable[[dict[str, float], int], None]
    close: Callable[[bool], None]


def require_trackers(names: list[str]) -> None:
    """Raises ConfigError where the package of a tracker is not installed."""
    for name in names:
        package = PACKAGES[name]
        spec = importlib.util.find_spec(package)  # without an origin it is a mere folder: W&B leaves one named wandb
        require(
            spec is not None and spec.origin is not None,
            f"trackers: {name} is not installed; pip install {package}, or take it out of the list",
        )


def without_secrets(text: str) -> str:
    """The text with neither user names and passwords nor signed queries in its URLs."""
    if "://" not in text:
        return text
    return re.sub(r"\?\S*=\S*", "", re.sub(r"://[^/\s]*@", "://", text))


def flat_config(config: TrainConfig) -> dict[str, Any]:
    """Every setting by its dotted key, as strangers may see it."""
    flat: dict[str, Any] = {}

    def add(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and f"{prefix}{key}" == "data.train":
                flat[prefix + key] = without_secrets(", ".join(f"{name} x {weight:g}" for name, weight in value.items()))
            elif isinstance(value, dict):
                add(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = without_secrets(value) if isinstance(value, str) else value

    add(dataclasses.asdict(config), "")
    return flat


def _read_ids(run_dir: Path) -> dict[str, str]:
    path = run_dir / IDS_FILE
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _remember_id(run_dir: Path, name: str, run_id: str) -> str:
    put(run_dir / IDS_FILE, (json.dumps({**_read_ids(run_dir), name: run_id}) + "\n").encode())
    return run_id


def _tensorboard(config: TrainConfig) -> Tracker:
    from tensorboardX import SummaryWriter

    writer, last = None, math.inf
    target = config.run_dir / "tensorboard"
    scratch = None if is_local(target) else tempfile.TemporaryDirectory(prefix="tensorboard-")  # its events are appended
    folder = scratch.name if scratch else str(target)

    def log(values: dict[str, float], step: int) -> None:
        nonlocal writer, last
        if step < last:  # the first line, or the run went back to a checkpoint: hide what an earlier start wrote from here on
            close(False)
            suffix = f".{time.time_ns()}"  # its own names differ by the second, and it would overwrite
            writer = SummaryWriter(folder, purge_step=step, filename_suffix=suffix)
            writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in flat_config(config).items()), step)
        last = step
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()
        if scratch and "val_loss" in values:
            put_folder(folder, target)

    def close(failed: bool) -> None:
        if writer is not None:
            writer.close()
        if scratch:
            put_folder(folder, target)

    return Tracker(log, close)


def _wandb(config: TrainConfig) -> Tracker:
    import wandb

    run_id = _read_ids(config.run_dir).get("wandb") or _remember_id(config.run_dir, "wandb", uuid.uuid4().hex[:8])
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=config.name,
        id=run_id,
        resume="allow",
        dir=str(config.run_dir) if is_local(config.run_dir) else tempfile.mkdtemp(prefix="wandb-"),
        config=flat_config(config),
        allow_val_change=True,
        settings=wandb.Settings(disable_git=True, disable_code=True, console="off", x_disable_meta=True),
    )
    run.define_metric("*", step_metric="step")  # its own steps only rise, and a restarted run's go back
    return Tracker(lambda values, step: run.log({"step": step, **values}), lambda failed: run.finish(int(failed)))


def _mlflow(config: TrainConfig) -> Tracker:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    require(bool(elsewhere) or is_local(config.run_dir), "no database on object storage: set MLFLOW_TRACKING_URI")
    client = MlflowClient(elsewhere or f"sqlite:///{Path(config.runs_dir).resolve()}/mlflow.db")
    run_id = _read_ids(config.run_dir).get("mlflow")
    if run_id is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        run_id = _remember_id(config.run_dir, "mlflow", client.create_run(experiment_id, run_name=config.name).info.run_id)
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in flat_config(config).items()])
    client.update_run(run_id, status="RUNNING")

    def log(values: dict[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(name, value, now_ms, step) for name, value in values.items()])

    return Tracker(log, lambda failed: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"))


class Tracking:
    """The trackers of a run, while it lasts. Used as a context."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.trackers: dict[str, Tracker] = {}

    def __enter__(self) -> Tracking:
        openers = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
        for name in self.config.trackers:
            with self._or_without(name):
                self.trackers[name] = openers[name](self.config)
        return self

    def __exit__(self, error_type, *error) -> None:
        for name, tracker in list(self.trackers.items()):
            with self._or_without(name):
                tracker.close(error_type is not None)

    def log(self, values: dict[str, float]) -> None:
        """A line of metrics.jsonl to every tracker that still works."""
        for name, tracker in list(self.trackers.items()):
            with self._or_without(name):
                tracker.log({key: float(value) for key, value in values.items() if key != "step"}, values["step"])

    @contextmanager
    def _or_without(self, name: str) -> Iterator[None]:
        """Whatever a tracker's library raises, training goes on; the tracker is not called again, so it warns once."""
        try:
            yield
        except Exception as error:
            self.trackers.pop(name, None)
            why = without_secrets(one_line(error))
            print(f"warning: tracker {name} failed ({why}); the run goes on without it, see metrics.jsonl", file=sys.stderr)
