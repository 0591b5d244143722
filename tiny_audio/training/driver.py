"""Training, as the driver sees it: the inputs checked, the workers of worker.py started under Ray Train, the model exported.

The loss of a step is the sum of the token losses over the global batch, divided by its number of label tokens, whoever
computed them; so the worker count and the ZeRO stage decide how fast a run is, and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from tiny_audio.config import ConfigError, TrainConfig, require
from tiny_audio.config_files import changed_settings, save_config
from tiny_audio.counts import name_rows
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.labels import Truecaser, make_truecaser
from tiny_audio.data.plan import RowGroup, plan_windows
from tiny_audio.data.stream import PREFETCH_STEPS, StreamSettings, ingest_config, train_dataset
from tiny_audio.model.backbone import read_window_s, require_decoder, require_encoder
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.saved import save_projector
from tiny_audio.ray_names import HEALTH_TIMEOUT, START_TIMEOUT, SUBCLUSTER
from tiny_audio.run.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    load_progress,
    load_weights,
    plan_identity,
    require_same_plan,
)
from tiny_audio.run.claim import claim_run, require_claim
from tiny_audio.run.metrics import MetricsFollower, append_warning
from tiny_audio.run.plan_file import keep_plan, planned_groups
from tiny_audio.run.rejects import worst_files
from tiny_audio.run.tracking import Tracking, require_trackers
from tiny_audio.storage import put, said_in_one_line, written_folder
from tiny_audio.training.watchdog import FailedWorkers, HangFollower, start_watch

# How long Ray Train waits for the nodes that it chose, before it chooses anew. They may have to come up first; where the
# number of workers may change it chooses those that are up, by a list that Ray renews every 20 s: one may just be lost.
START_TIMEOUT_S = 1800
ELASTIC_START_TIMEOUT_S = 30
# How often it is asked whether nodes have come. To take them in costs a restart, and the steps since the last checkpoint.
RESIZE_CHECK_S = 300.0


def _dataset_factory(
    config: TrainConfig, groups: list[RowGroup], truecaser: Truecaser | None, watch, claim: str, identity: dict[str, Any]
):
    """A function that Ray Train calls at every start of the workers: the stream from the last checkpoint on.

    It returns another, which `ingest_config` calls with the number of workers. Called first, it takes the run over: the
    nodes to go on with are there. Only then it is settled what the run goes on from: another start, perhaps of another
    plan, may have written until now.
    """
    is_claimed = False

    def make() -> Callable[[int], ray.data.Dataset]:
        nonlocal is_claimed
        failed = ray.get(watch.begin.remote())
        with said_in_one_line(config.run_dir):
            if is_claimed:
                require_claim(config.run_dir, claim)
            else:
                require_same_plan(config.run_dir, identity)  # what is refused must end no other start
                claim_run(config.run_dir, claim)
            progress = require_same_plan(config.run_dir, identity)
            start_step = progress.step if progress else 0
            if is_claimed:
                again = f"the workers start again, from step {start_step}"
                append_warning(config.run_dir, start_step, f"{failed}; {again}" if failed else again)
        is_claimed = True
        data = config.data
        plan = partial(plan_windows, groups, config.seed, data.batch_rows, data.steps_per_window)
        settings = StreamSettings(
            seed=config.seed,
            start_step=start_step,
            num_steps=config.num_steps,
            max_duration_s=data.max_duration_s,
            silence_share=data.silence_share,
            truecaser=truecaser,
            source_weights=data.source_weights,
            augment=config.augment,
        )
        return partial(train_dataset, plan, settings)

    return make


def _train_loop(loop_config: dict) -> str:
    from tiny_audio.training.worker import train_loop

    return train_loop(loop_config)


def _trainer(config: TrainConfig, groups: list[RowGroup], truecaser: Truecaser | None, watch, scratch: str) -> TorchTrainer:
    """`scratch` is a folder for what Ray Train keeps: an empty file. It is told of no checkpoint, and recovers nothing."""
    claim, identity = uuid.uuid4().hex, plan_identity(config, groups)
    loop_config = {
        "config": dataclasses.asdict(config),
        "plan_identity": identity,
        "claim": claim,
        "watch": watch,
    }
    num_workers = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
    return TorchTrainer(
        _train_loop,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=config.use_gpu, elastic_resize_monitor_interval_s=RESIZE_CHECK_S
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=scratch,  # read and written here, on the driver's node, alone
            failure_config=FailureConfig(max_failures=config.max_failures),
            callbacks=[FailedWorkers(watch)],
        ),
        datasets={"train": _dataset_factory(config, groups, truecaser, watch, claim, identity)},
        dataset_config=ingest_config(config.data.decode_label),
    )


def _files_of_step(config: TrainConfig, groups: list[RowGroup], step: int) -> str:
    """What must be read before workers get their rows of a step, for people: the files of its window, and of those ahead."""
    data, stop = config.data, min(step + 1 + PREFETCH_STEPS, config.num_steps)
    windows = plan_windows(groups, config.seed, data.batch_rows, data.steps_per_window, num_steps=stop, start_step=step)
    return name_rows(list(dict.fromkeys(part.path for window in windows for part in window.slices)))


def _fit(config: TrainConfig, groups: list[RowGroup], truecaser: Truecaser | None, watch) -> str:
    """Trains to the end; returns why it stopped before, if so.

    Raises:
        TrainingFailedError: workers failed more than `max_failures` times, and not by a hang.
    """
    follower = HangFollower(watch, partial(_files_of_step, config, groups))
    try:
        with follower, tempfile.TemporaryDirectory(prefix="ray_train-") as scratch:
            return _trainer(config, groups, truecaser, watch, scratch).fit().return_value  # rank 0's
    except TrainingFailedError as error:
        cause = getattr(error, "controller_failure", None)  # of the start of the data
        if isinstance(cause, ConfigError):
            return str(cause)
        final, hung = ray.get(watch.reasons.remote())
        if not final and not (hung and isinstance(error, WorkerGroupError)):
            raise
        return final or f"{hung}; given up after {config.max_failures} restarts, and the same command goes on"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _warn_of_no_decode_node(label: str | None) -> None:
    if label and not any(node["Alive"] and node["Labels"].get(SUBCLUSTER) == label for node in ray.nodes()):
        _warn(f"no node has the label {SUBCLUSTER}={label} yet, and data are decoded there alone; or leave data.decode_label out")


def _save_settings(config: TrainConfig) -> None:
    """Writes config.yaml; names what an earlier start of the run had otherwise."""
    path = config.run_dir / "config.yaml"
    with said_in_one_line(config.run_dir):
        changed = changed_settings(path, config)
        if changed:
            _warn(f"{config.run_dir} goes on with other settings, {', '.join(changed)}; to compare runs, give each its own name")
        save_config(config, path)


@contextmanager
def _ray_train_timeouts(config: TrainConfig) -> Iterator[None]:
    """Ray Train's own timeouts, which it takes from the environment; one that is set there already stays."""
    before = {name: os.environ.get(name) for name in (START_TIMEOUT, HEALTH_TIMEOUT)}
    os.environ.setdefault(START_TIMEOUT, str(START_TIMEOUT_S))
    os.environ.setdefault(HEALTH_TIMEOUT, str(2 * config.watchdog_timeout_s))  # the watchdog says more: it goes first
    if config.min_workers:
        os.environ[START_TIMEOUT] = str(ELASTIC_START_TIMEOUT_S)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _export(config: TrainConfig) -> dict:
    """Writes model/ from the best or the last checkpoint, and training.json; returns what that says."""
    latest = latest_checkpoint(config.run_dir, _warn)
    exported = best_checkpoint(config.run_dir, config.score_metric, _warn) if config.export == "best" else latest
    progress = load_progress(latest)
    nothing = f"{config.run_dir}: no row was trained; rejected: {progress.rejects}; left out: {progress.left_out}"
    require(progress.num_rows > 0, nothing)
    with written_folder(config.run_dir / "model") as folder:
        save_projector(ASRConfig(**dataclasses.asdict(config.model)), load_weights(exported), folder)
    training = {**dataclasses.asdict(progress), "end": progress.end_reason(config), "exported_step": load_progress(exported).step}
    training["reject_files"] = worst_files(config.run_dir)
    put(config.run_dir / "training.json", (json.dumps(training, indent=1) + "\n").encode())
    return training


def train(config: TrainConfig, start_ray: Callable[[], None] = lambda: None) -> dict:
    """Trains a projector, or goes on with the run of that name; returns what training.json says.

    Writes to the run's folder: config.yaml, plan.parquet, metrics.jsonl, ledger.parquet/, rejects.parquet/, checkpoints/,
    training.json, model/, and what `trackers` keep.

    Args:
        start_ray: called once all inputs are checked, unless Ray is up already.

    Raises:
        ConfigError: a shard or backbone is not there or is no such thing, the run was started with other settings, too
            many rows are rejected, the loss is not finite or has exploded, or workers hang more than `max_failures` times.
    """
    config = config.with_absolute_paths()
    config.data.max_duration_s = min(config.data.max_duration_s, read_window_s(config.model.audio_model_id))
    require_encoder(config.model.audio_model_id)
    require_decoder(config.model.text_model_id)
    groups, truecaser = planned_groups(config, _warn), make_truecaser(config.data)
    read_footers(list_shards(config.data.dev), config.data.max_dev_rows)
    require(bool(groups), f"{config.data.train}: the training shards hold no rows")
    with said_in_one_line(config.run_dir):
        progress = require_same_plan(config.run_dir, plan_identity(config, groups))
    if progress and progress.end_reason(config):  # workers would have nothing to do
        _save_settings(config)
        return _export(config)
    require_trackers(config.trackers)
    start_ray()
    _warn_of_no_decode_node(config.data.decode_label)
    watch = start_watch(config.watchdog_timeout_s, str(config.run_dir))
    try:
        _save_settings(config)
        keep_plan(config, groups)
        timeouts, tracking = _ray_train_timeouts(config), Tracking(config)
        with timeouts, tracking, MetricsFollower(config.run_dir, config.num_steps, tracking.log):
            stopped = _fit(config, groups, truecaser, watch)
    finally:
        ray.kill(watch)
    run = f"{config.run_dir}: "  # which some of the reasons name already
    require(not stopped, run + stopped.removeprefix(run))
    return _export(config)
