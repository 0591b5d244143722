"""Training, as the driver does it: it checks the inputs, starts the workers of worker.py under Ray Train and exports the model.

The loss of a step is the sum of the token losses over the global batch, divided by its number of label tokens, whichever
workers computed them; so the worker count and the ZeRO stage decide how fast a run is, and nothing else.
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
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from tiny_audio.config import ConfigError, DataConfig, TrainConfig, absolute, require, storage_path
from tiny_audio.config_files import changed_settings, save_config
from tiny_audio.data.dev_clips import load_dev_clips
from tiny_audio.data.footers import read_dataset
from tiny_audio.data.labels import make_truecaser
from tiny_audio.data.stream import ingest_config, train_dataset
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.ctc_head import CTC_HEAD_FILE
from tiny_audio.model.decoder import require_decoder
from tiny_audio.model.encoder import read_window_s, require_encoder
from tiny_audio.model.lora import split_adapter
from tiny_audio.model.projectors import frames_per_token
from tiny_audio.model.saved import save_model
from tiny_audio.monitoring.metrics import STARTS
from tiny_audio.monitoring.recorder import Recorder
from tiny_audio.ray_names import HEALTH_TIMEOUT, START_TIMEOUT, SUBCLUSTER
from tiny_audio.run.checkpoint import (
    best_checkpoint,
    has_checkpoint,
    latest_checkpoint,
    load_progress,
    load_weights,
    require_same_plan,
)
from tiny_audio.run.claim import claim_run, require_claim
from tiny_audio.run.metrics import MetricsFollower, append_warning
from tiny_audio.run.model_card import MODEL_CARD, describe_adapter, describe_projector, model_card
from tiny_audio.run.plan_file import keep_plan, planned_groups
from tiny_audio.run.rejects import worst_files
from tiny_audio.run.tracking import Tracking, require_trackers
from tiny_audio.storage import put, said_in_one_line, with_absolute_paths, written_folder
from tiny_audio.training.hang_follower import FailedWorkers, HangFollower
from tiny_audio.training.places import can_grow, find_lacks, live_nodes, worker_resources, worker_selector
from tiny_audio.training.process_group import ProcessGroupConfig
from tiny_audio.training.resolved import ResolvedRun
from tiny_audio.training.run_monitor import RunMonitor
from tiny_audio.training.watchdog import start_watch

# How long Ray Train waits for the nodes that it chose before it chooses again. They may have to boot first. If the number of
# workers may change, it chooses nodes that are up, by a list that Ray renews every 20 s: one of them may just have been lost.
START_TIMEOUT_S = 1800
ELASTIC_START_TIMEOUT_S = 30
# How often Ray Train looks for new nodes. To take them in costs a restart, and the steps since the last checkpoint.
RESIZE_CHECK_S = 300.0


def _dataset_factory(run: ResolvedRun, watch) -> Callable[[], Callable[[int], ray.data.Dataset]]:
    """Returns what Ray Train calls at every start of the workers, once their nodes are there.

    It takes the run over, and only then settles the step that the run resumes from: until that moment another start, perhaps
    under another plan, may have written to the folder. It returns a function in turn, which `ingest_config` calls with the
    number of workers for the stream from that step on.
    """
    is_claimed = False

    def make() -> Callable[[int], ray.data.Dataset]:
        nonlocal is_claimed
        failed = ray.get(watch.begin.remote())
        with said_in_one_line(run.folder):
            if is_claimed:
                require_claim(run.folder, run.claim)
            else:
                require_same_plan(run.folder, run.identity)  # a start that is refused must end no other
                claim_run(run.folder, run.claim)
            progress = require_same_plan(run.folder, run.identity)
            start_step = progress.step if progress else 0
            if is_claimed:
                again = f"the workers start again, from step {start_step}"
                append_warning(run.folder, start_step, f"{failed}; {again}" if failed else again)
        is_claimed = True
        Recorder(run=run.config.name).add(STARTS, 1)
        return partial(train_dataset, run.plan, range(start_step, run.config.num_steps))

    return make


def _train_loop(loop_config: dict) -> str:
    from tiny_audio.training.worker import train_loop

    return train_loop(loop_config)


def _start_decoding_dev_clips(data: DataConfig) -> ray.ObjectRef:
    """Starts the task that decodes the clips to validate on, once for all workers, where the training rows are decoded.

    It asks for no CPU: the decode tasks of the training rows may hold all of them until the workers, which wait for these
    clips, take their first step.
    """
    nodes = {SUBCLUSTER: data.decode_label} if data.decode_label else None
    task = ray.remote(num_cpus=0, label_selector=nodes, retry_exceptions=[OSError])(load_dev_clips)
    return task.remote(data)


def _trainer(run: ResolvedRun, watch, scratch: str) -> TorchTrainer:
    """Makes the trainer. Ray Train keeps an empty file in `scratch`; it is told of no checkpoint, and recovers nothing."""
    config = run.config
    num_workers = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
    return TorchTrainer(
        _train_loop,
        train_loop_config={"run": run.for_workers(), "watch": watch, "dev_clips": _start_decoding_dev_clips(config.data)},
        torch_config=ProcessGroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker=worker_resources(config),
            label_selector=worker_selector(config),
            elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=scratch,  # only the driver's node reads and writes it
            failure_config=FailureConfig(max_failures=config.max_failures),
            callbacks=[FailedWorkers(watch)],
        ),
        datasets={"train": _dataset_factory(run, watch)},
        dataset_config=ingest_config(config.data.decode_label),
    )


def _fit(run: ResolvedRun, watch) -> str:
    """Trains to the end; returns why the run stopped before, or an empty string.

    Raises:
        TrainingFailedError: workers failed more than `max_failures` times, and not by a hang.
    """
    try:
        with HangFollower(watch, run), tempfile.TemporaryDirectory(prefix="ray_train-") as scratch:
            return _trainer(run, watch, scratch).fit().return_value  # rank 0's
    except TrainingFailedError as error:
        cause = getattr(error, "controller_failure", None)  # from the start of the data
        if isinstance(cause, ConfigError):
            return str(cause)
        final, hung = ray.get(watch.reasons.remote())
        if not final and not (hung and isinstance(error, WorkerGroupError)):
            raise
        return final or f"{hung}; given up after {run.config.max_failures} restarts, and the same command goes on"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _require_places(config: TrainConfig) -> None:
    """Checks that the cluster has room for the workers and for decode tasks; only warns of a cluster that may still grow.

    Raises:
        ConfigError: it has not, and both would wait for ever.
    """
    nodes = live_nodes()
    for lack in find_lacks(nodes, config):
        require(can_grow(nodes), f"{lack.detail}; {lack.remedy}")
        _warn(f"{lack.detail} yet")


def _save_settings(run: ResolvedRun) -> None:
    """Writes config.yaml, and warns of settings that an earlier start of the run had otherwise."""
    path = run.folder / "config.yaml"
    with said_in_one_line(run.folder):
        changed = changed_settings(path, run.config)
        if changed:
            _warn(f"{run.folder} goes on with other settings, {', '.join(changed)}; to compare runs, give each its own name")
        save_config(run.config, path)


@contextmanager
def _ray_train_timeouts(config: TrainConfig) -> Iterator[None]:
    """Sets Ray Train's own timeouts, which it takes from the environment; one that is set there already stays."""
    before = {name: os.environ.get(name) for name in (START_TIMEOUT, HEALTH_TIMEOUT)}
    os.environ.setdefault(START_TIMEOUT, str(START_TIMEOUT_S))
    os.environ.setdefault(HEALTH_TIMEOUT, str(2 * config.watchdog_timeout_s))  # the watchdog says more, so it must fire first
    if config.min_workers:
        os.environ[START_TIMEOUT] = str(ELASTIC_START_TIMEOUT_S)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _export(run: ResolvedRun) -> dict:
    """Writes model/ from the best or the last checkpoint, and training.json; returns what that says."""
    config = run.config
    latest = latest_checkpoint(run.folder, _warn)
    exported = best_checkpoint(run.folder, config.score_metric, _warn) if config.export == "best" else latest
    progress = load_progress(latest)
    nothing = f"{run.folder}: no row was trained; rejected: {progress.rejects}; left out: {progress.left_out}"
    require(progress.num_rows > 0, nothing)
    weights, exported_progress = load_weights(exported), load_progress(exported)
    model = ASRConfig(**dataclasses.asdict(config.model))
    projector, adapter = split_adapter(weights, config.lora)
    described = describe_projector(model.projector_type, frames_per_token(model), projector.values())
    with written_folder(run.folder / "model") as folder:
        save_model(model, projector, adapter, folder)
        _pass_on_ctc_head(config, Path(folder))
        (Path(folder) / MODEL_CARD).write_text(model_card(config, described, describe_adapter(adapter), exported_progress))
    training = {**dataclasses.asdict(progress), "end": run.end_reason(progress), "exported_step": exported_progress.step}
    training["reject_files"] = worst_files(run.folder)
    put(run.folder / "training.json", (json.dumps(training, indent=1) + "\n").encode())
    return training


def _pass_on_ctc_head(config: TrainConfig, folder: Path) -> None:
    """Copies the CTC head of the model that a run began with, if it has one: the head belongs to the encoder, which stays."""
    if config.init_from and (head := storage_path(config.init_from) / CTC_HEAD_FILE).is_file():
        (folder / CTC_HEAD_FILE).write_bytes(head.read_bytes())


def _resolve_config(config: TrainConfig) -> TrainConfig:
    config = with_absolute_paths(config)
    window_s = read_window_s(config.model.audio_model_id)
    data = dataclasses.replace(config.data, max_duration_s=min(config.data.max_duration_s, window_s))
    return dataclasses.replace(config, data=data, init_from=config.init_from and _saved_model(config))


def _saved_model(config: TrainConfig) -> str:
    """Finds the saved model that `init_from` names: a run's, by its name beside this run or its folder, or one itself.

    Raises:
        ConfigError: there is none, and the run has no checkpoint yet; a run that goes on has no need of it.
    """
    named = storage_path(config.init_from)
    places = [storage_path(config.runs_dir) / config.init_from / "model", named / "model", named]
    found = [place for place in places if (place / "config.json").is_file()]
    needed = not has_checkpoint(config.run_dir)
    require(bool(found) or not needed, f"init_from={config.init_from}: no run with a model/, and no saved model, is there")
    return absolute(str(found[0])) if found else config.init_from


def resolve(config: TrainConfig) -> ResolvedRun:
    """Checks all inputs of a run, and reads its shards' footers or the plan that it kept; Ray need not be up.

    Raises:
        ConfigError: a shard or backbone is missing or is no such thing.
    """
    config = _resolve_config(config)
    require_encoder(config.model.audio_model_id)
    require_decoder(config.model.text_model_id)
    frames_per_token(ASRConfig(**dataclasses.asdict(config.model)))  # or its error
    groups, truecaser = planned_groups(config.run_dir, config.data, _warn), make_truecaser(config.data)
    read_dataset(config.data.dev, config.data.max_dev_rows, columns=config.data.columns)
    require(bool(groups), f"{config.data.train}: the training shards hold no rows")
    plan = TrainingPlan.of(config, groups, truecaser)
    return ResolvedRun(config, config.run_dir, plan, plan.identity(), uuid.uuid4().hex)


def train(config: TrainConfig, start_ray: Callable[[], None] = lambda: None) -> dict:
    """Trains a projector, or resumes the run of that name; returns what training.json says.

    Writes to the run's folder: config.yaml, plan.parquet, metrics.jsonl, ledger.parquet/, rejects.parquet/, checkpoints/,
    training.json, model/, and what `trackers` keep.

    Args:
        start_ray: is called once all inputs are checked, unless Ray is up already.

    Raises:
        ConfigError: a shard or backbone is missing or is no such thing, the run was started with other settings, too many
            rows are rejected, the loss is not finite or has exploded, or workers hang more than `max_failures` times.
    """
    run = resolve(config)
    with said_in_one_line(run.folder):
        progress = require_same_plan(run.folder, run.identity)
    if progress and run.end_reason(progress):  # workers would have nothing to do
        _save_settings(run)
        return _export(run)
    require_trackers(run.config.trackers)
    start_ray()
    _require_places(run.config)
    watch = start_watch(run.config.watchdog_timeout_s, str(run.folder))
    try:
        _save_settings(run)
        keep_plan(run.folder, run.config.data, run.plan.groups)
        monitor = RunMonitor(run.config.name, run.config.num_steps, progress.step if progress else 0)
        timeouts, tracking = _ray_train_timeouts(run.config), Tracking(run.config)
        with timeouts, tracking, monitor, MetricsFollower(run.folder, run.config.num_steps, [tracking.log, monitor.log]):
            stopped = _fit(run, watch)
            prefix = f"{run.folder}: "  # which some of the reasons begin with already
            require(not stopped, prefix + stopped.removeprefix(prefix))
    finally:
        ray.kill(watch)
    return _export(run)
