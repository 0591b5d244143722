"""Sends a run's metrics to the trackers that its config names: TensorBoard, Weights & Biases, MLflow. Runs on the driver.

metrics.jsonl is the record; trackers get the same lines as the terminal does. A tracker that fails is dropped with a
warning, and the run goes on. Of the config they see keys and values: no environment variable, no command line, no code,
and no password in a URL.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
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
from tiny_audio.storage import is_local, put, put_folder, without_secrets

PROJECT = "tiny_audio"  # default for WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME
IDS_FILE = "tracking.json"  # the run's ids at W&B and MLflow, so that a resumed run continues there
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}  # tracker -> package to install


@dataclass(frozen=True)
class Tracker:
    """Holds the two calls of a metrics store: `log` takes values and their step, `close` takes whether the run failed."""

    log: Callable[[dict[str, float], int], None]
    close: Callable[[bool], None]


def require_trackers(names: list[str]) -> None:
    """Raises ConfigError if a tracker's package is not installed."""
    for name in names:
        package = PACKAGES[name]
        spec = importlib.util.find_spec(package)  # without an origin it is a plain folder: W&B leaves one named wandb
        require(
            spec is not None and spec.origin is not None,
            f"trackers: {name} is not installed; pip install {package}, or take it out of the list",
        )


def flat_config(config: TrainConfig) -> dict[str, Any]:
    """Returns every setting by its dotted key, with no secret in a value."""
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


def _write_id(run_dir: Path, name: str, run_id: str) -> str:
    put(run_dir / IDS_FILE, (json.dumps({**_read_ids(run_dir), name: run_id}) + "\n").encode())
    return run_id


def _tensorboard(config: TrainConfig) -> Tracker:
    from tensorboardX import SummaryWriter

    writer, last_step = None, math.inf
    target = config.run_dir / "tensorboard"
    # Events are appended to their file, which object storage cannot do: they are written locally and copied.
    scratch = None if is_local(target) else tempfile.TemporaryDirectory(prefix="tensorboard-")
    folder = scratch.name if scratch else str(target)

    def log(values: dict[str, float], step: int) -> None:
        nonlocal writer, last_step
        if step < last_step:  # the first line, or the run went back to a checkpoint: hide what was written from this step on
            close(False)
            suffix = f".{time.time_ns()}"  # tensorboardX's own names change only every second: it would overwrite a file
            writer = SummaryWriter(folder, purge_step=step, filename_suffix=suffix)
            writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in flat_config(config).items()), step)
        last_step = step
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

    run_id = _read_ids(config.run_dir).get("wandb") or _write_id(config.run_dir, "wandb", uuid.uuid4().hex[:8])
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
    run.define_metric("*", step_metric="step")  # W&B's own step can only rise, and a restarted run's goes back
    return Tracker(lambda values, step: run.log({"step": step, **values}), lambda failed: run.finish(int(failed)))


def _mlflow(config: TrainConfig) -> Tracker:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    server = os.environ.get("MLFLOW_TRACKING_URI")
    require(bool(server) or is_local(config.run_dir), "no database on object storage: set MLFLOW_TRACKING_URI")
    client = MlflowClient(server or f"sqlite:///{Path(config.runs_dir).resolve()}/mlflow.db")
    run_id = _read_ids(config.run_dir).get("mlflow")
    if run_id is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        run_id = _write_id(config.run_dir, "mlflow", client.create_run(experiment_id, run_name=config.name).info.run_id)
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in flat_config(config).items()])
    client.update_run(run_id, status="RUNNING")

    def log(values: dict[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(name, value, now_ms, step) for name, value in values.items()])

    return Tracker(log, lambda failed: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"))


class Tracking:
    """Opens a run's trackers on entering the context, passes metrics to them, and closes them on leaving it."""

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
        """Sends a line of metrics.jsonl to every tracker that still works."""
        for name, tracker in list(self.trackers.items()):
            with self._or_without(name):
                tracker.log({key: float(value) for key, value in values.items() if key != "step"}, values["step"])

    @contextmanager
    def _or_without(self, name: str) -> Iterator[None]:
        """Lets training go on whatever a tracker's library raises: the tracker is dropped, so it warns only once."""
        try:
            yield
        except Exception as error:
            self.trackers.pop(name, None)
            why = without_secrets(one_line(error))
            print(f"warning: tracker {name} failed ({why}); the run goes on without it, see metrics.jsonl", file=sys.stderr)
