"""What a run keeps: the trained weights, their moments and the position in the data. Nothing frozen, nothing sharded.

A checkpoint folder holds `projector.safetensors`, `optimizer.safetensors` and `state.json`, at full size about 141 MB, and
`SHA256SUMS`, written last, which tells a whole checkpoint from a damaged one. Ray Train keeps the list of those reported.
Which of them is gone on from, or exported, is decided here and from the run's folder alone, so that all who ask agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from tiny_audio.config import TrainConfig, require
from tiny_audio.plan import RowGroup

CHECKPOINTS = "checkpoints"  # Ray Train's folder in a run's
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of what was reported there
UNSCORED = 1e9  # of a checkpoint without a validation: worse than any; finite, for Ray's list would turn infinity into null
SCORES = ("val_loss", "val_wer")
WEIGHTS, MOMENTS, STATE = "projector.safetensors", "optimizer.safetensors", "state.json"
SUMS = "SHA256SUMS"  # as sha256sum writes and checks it


@dataclass
class Progress:
    """How far a run is. `step` steps are done: it is the position in the data too, see `plan.py`."""

    step: int = 0
    num_rows: int = 0
    audio_s: float = 0.0
    train_s: float = 0.0  # spent in steps, over all starts of the run
    rejects: dict[str, dict[str, int]] = field(default_factory=dict)  # by source and reason
    left_out: dict[str, int] = field(default_factory=dict)  # by source: rows whose turn it was not, by its weight
    best: dict[str, float] = field(default_factory=dict)  # scores of the best validation so far, and its `step`
    num_worse: int = 0  # validations since
    plan: dict[str, Any] = field(default_factory=dict)  # see plan_identity

    def count_validation(self, scores: dict[str, float], metric: str) -> bool:
        """Takes the scores of a validation at this step; returns whether it is the best so far."""
        better = scores[metric] < self.best.get(metric, math.inf)
        self.best = {"step": self.step, **scores} if better else self.best
        self.num_worse = 0 if better else self.num_worse + 1
        return better

    def end_reason(self, config: TrainConfig) -> str:
        """Why the run is over here, in words; empty while it is not. A function of what checkpoints keep and the config."""
        if self.step >= config.num_steps:
            return f"all {config.num_steps} steps are done"
        patience = config.early_stopping_patience
        if patience is None or self.num_worse < patience:
            return ""
        return f"no better {config.score_metric} in {self.num_worse} validations since step {self.best.get('step', 0)}"


def plan_identity(config: TrainConfig, groups: list[RowGroup]) -> dict[str, Any]:
    """What a step trains follows from. A run resumed under another identity would skip rows and repeat others."""
    return {
        "seed": config.seed,
        "batch_rows": config.data.batch_rows,
        "steps_per_window": config.data.steps_per_window,
        "silence_share": config.data.silence_share,
        "max_duration_s": config.data.max_duration_s,
        "weights": " ".join(f"{weight:g}" for weight in config.data.train_weights.values()),
        "source_weights": " ".join(f"{name}={weight:g}" for name, weight in sorted(config.data.source_weights.items())),
        "truecase": config.data.truecase,
        "truecase_text": config.data.truecase_text or "",
        "num_rows": sum(group.num_rows for group in groups),
        "shards": hashlib.sha256(repr([(Path(g.path).name, g.num_rows) for g in groups]).encode()).hexdigest()[:12],
        "audio_model_id": config.model.audio_model_id,
        "text_model_id": config.model.text_model_id,
        **{f"augment.{key}": value for key, value in dataclasses.asdict(config.augment).items()},
    }


def save_checkpoint(folder: Path, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], progress: Progress) -> None:
    """Writes a checkpoint into an empty folder, its checksums last.

    Raises:
        OSError: it cannot be written, as on a full disk: says how much room it takes. The folder is removed again.
    """
    state = json.dumps(dataclasses.asdict(progress), indent=1).encode()
    files = {WEIGHTS: save(weights), MOMENTS: save(moments), STATE: state}
    files[SUMS] = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()
    try:
        for name, data in files.items():
            with (folder / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # some file systems say only here that they are full
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        size_mb, free_mb = (number / 1e6 for number in (sum(map(len, files.values())), shutil.disk_usage(folder.parent).free))
        room = f"it takes {size_mb:.1f} MB, and {free_mb:.1f} MB are free there"
        hint = "make room and start the run again: the earlier checkpoints are as they were"
        raise OSError(error.errno, f"no checkpoint written to {folder} ({error.strerror}): {room}; {hint}") from error


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint: a file of it that is not as it was written, in words; empty for a whole one."""
    path = folder / SUMS
    try:
        sums = path.read_bytes().splitlines()
        for name in (WEIGHTS, MOMENTS, STATE):
            path = folder / name
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if f"{digest}  {name}".encode() not in sums:
                return f"{path} is damaged: its checksum is not the one in {SUMS}"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return ""


def load_progress(folder: str | Path) -> Progress:
    """The state of a checkpoint folder."""
    return Progress(**json.loads((Path(folder) / STATE).read_text()))


def load_checkpoint(folder: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Progress]:
    """Weights, moments and progress of a checkpoint folder."""
    return load_file(Path(folder) / WEIGHTS), load_file(Path(folder) / MOMENTS), load_progress(folder)


def checkpoint_metrics(step: int, scores: dict[str, float]) -> dict[str, float]:
    """What is reported with a checkpoint: its step, and every score; UNSCORED where it was not measured, or is no number."""
    known = {name: scores[name] for name in SCORES if math.isfinite(scores.get(name, math.inf))}
    return {"step": step, **dict.fromkeys(SCORES, UNSCORED), **known}


def _read_list(snapshot: Path) -> list[dict[str, Any]] | None:
    """The entries of Ray Train's list; None where it is not there or cannot be read."""
    try:
        return json.loads(snapshot.read_text())["checkpoint_results"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _listed(run_dir: Path) -> list[dict[str, Any]]:
    """Name and metrics of the checkpoints that Ray Train lists; where its list is lost, of the folders there."""
    folder = run_dir / CHECKPOINTS
    listed = _read_list(folder / SNAPSHOT)
    if listed is None:
        listed = [_result(path.parent) for path in sorted(folder.glob(f"step-*/{SUMS}"))]  # without: cut off in a first save
        lost = f"{folder / SNAPSHOT} is damaged, and no checkpoint is beside it; {_remedy(run_dir)}"
        require(bool(listed) or not (folder / SNAPSHOT).exists(), lost)
    return listed


def _result(folder: Path) -> dict[str, Any]:
    """What Ray Train's list says of a checkpoint, from its folder. Scores are known of the best one alone: that will do."""
    step = int(folder.name.split("-")[1])
    best = {} if damage(folder) else load_progress(folder).best
    return {"checkpoint_dir_name": folder.name, "metrics": checkpoint_metrics(step, best if best.get("step") == step else {})}


def _remedy(run_dir: Path) -> str:
    return f"restore {run_dir / CHECKPOINTS} from a backup, or delete {run_dir} to start the run anew"


def _first_whole(run_dir: Path, key: Callable[[dict], Any]) -> Path | None:
    """The first checkpoint by `key` that is whole; None for a new run.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    listed, wrong = sorted(_listed(run_dir), key=key), ""
    for result in listed:
        folder = run_dir / CHECKPOINTS / result["checkpoint_dir_name"]
        wrong = damage(folder)
        if not wrong:
            return folder
    require(not listed, f"{wrong}; no checkpoint of the run is whole: {_remedy(run_dir)}")
    return None


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The last whole checkpoint of a run, to go on from; None for a new run.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    return _first_whole(run_dir, lambda result: -result["metrics"]["step"])


def best_checkpoint(run_dir: Path, metric: str) -> Path | None:
    """The whole checkpoint with the lowest `metric`, of equals the last; None for a new run.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    return _first_whole(run_dir, lambda result: (result["metrics"].get(metric, UNSCORED), -result["metrics"]["step"]))


def new_checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Makes an empty folder for the checkpoint of a step. A name that Ray Train lists is not used twice: it deletes by name."""
    names, name = {result["checkpoint_dir_name"] for result in _listed(run_dir)}, f"step-{step:08d}"
    while name in names:
        name += "-again"
    folder = run_dir / CHECKPOINTS / name
    shutil.rmtree(folder, ignore_errors=True)  # cut off, or left out as damaged
    folder.mkdir()
    return folder


def leave_out_damaged(run_dir: Path, metric: str) -> None:
    """Takes damaged checkpoints off Ray Train's list, and makes a lost list anew; says so, a line each, on stderr.

    Ray Train does not start where its list names a missing folder. Only while the run is not going: it holds the list in
    memory. The folders of the damaged ones stay where they are.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    latest, snapshot = latest_checkpoint(run_dir), run_dir / CHECKPOINTS / SNAPSHOT
    if latest is None:
        return
    whole, said = [], []
    for result in _listed(run_dir):
        wrong = damage(run_dir / CHECKPOINTS / result["checkpoint_dir_name"])
        if wrong:
            said.append(f"{wrong}; this checkpoint is left out, the last whole one is {latest.name}")
        else:
            whole.append(result)
    if _read_list(snapshot) is None:
        said.append(f"{snapshot} was lost or damaged; it is made anew, the last checkpoint is {latest.name}")
    if said:
        part = snapshot.with_suffix(".part")
        part.write_text(json.dumps(_ray_list(whole, latest.name, metric)))
        part.replace(snapshot)
    for line in said:
        print(f"warning: {line}", file=sys.stderr)


def _ray_list(results: list[dict[str, Any]], latest: str, metric: str) -> dict[str, Any]:
    """The list as Ray Train keeps it (`_CheckpointManagerState`): the worst first, numbered in the order of the reports."""
    in_order = sorted(results, key=lambda result: (result["metrics"]["step"], result["checkpoint_dir_name"]))
    ranked = sorted(in_order, key=lambda result: -result["metrics"].get(metric, UNSCORED))
    nothing = ("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names")
    nothing += ("timed_out_validation_checkpoint_dir_names", "failed_validation_checkpoint_dir_names")
    return {
        "ray_version": version("ray"),
        "checkpoint_results": ranked,
        "checkpoint_report_indices": [in_order.index(result) for result in ranked],
        "latest_checkpoint_result": next(result for result in results if result["checkpoint_dir_name"] == latest),
        "current_report_index": len(results),
        **{name: [] for name in nothing},
    }


def require_same_plan(run_dir: Path, identity: dict[str, Any]) -> None:
    """Refuses to go on with a run whose steps would now train other rows, or the same ones otherwise.

    Raises:
        ConfigError: naming the setting that changed.
    """
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        return
    for key, value in load_progress(checkpoint).plan.items():
        now = identity.get(key)
        remedy = "set it back, or give the run another name"
        require(now == value, f"{run_dir}: was started with {key}={value}, now it is {now}; {remedy}")
