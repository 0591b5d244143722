"""Checkpoints: the trained weights, their moments and the position in the data. They hold nothing frozen and nothing sharded.

A checkpoint folder holds `projector.safetensors`, `optimizer.safetensors` and `state.json`, at full size about 141 MB, and
`SHA256SUMS`, which is written last: a folder without it is a save that was cut off, and no checkpoint. Which checkpoint a
run resumes from, exports or deletes is decided here and from these folders alone, so that the driver and all workers agree.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from tiny_audio.config import require
from tiny_audio.run.metrics import append_warning
from tiny_audio.storage import is_local, put, remove_folder
from tiny_audio.versions import FORMAT_VERSION, require_version

CHECKPOINTS = "checkpoints"  # in a run's folder
WEIGHTS, MOMENTS, STATE = "projector.safetensors", "optimizer.safetensors", "state.json"
SUMS = "SHA256SUMS"  # as sha256sum writes and checks it
CHECKPOINT_VERSION = 1  # of the format; state.json holds it
DAMAGE_ERRNOS = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)  # of a local disk, or of the checksums of its file system


@dataclass
class Progress:
    """How far a run has come. The number of steps done, `step`, is the position in the data too; see `plan.py`."""

    step: int = 0
    num_rows: int = 0
    audio_s: float = 0.0
    train_s: float = 0.0  # spent in steps, over all starts of the run
    rejects: dict[str, dict[str, int]] = field(default_factory=dict)  # by source and reason
    left_out: dict[str, int] = field(default_factory=dict)  # by source: rows that its weight left out of their epoch
    best: dict[str, float] = field(default_factory=dict)  # scores of the best validation so far, and its `step`
    num_worse: int = 0  # validations since
    scores: dict[str, float] = field(default_factory=dict)  # of the validation at this very step, if there was one
    plan: dict[str, Any] = field(default_factory=dict)  # see TrainingPlan.identity

    def count_validation(self, scores: dict[str, float], metric: str) -> bool:
        """Counts a validation at this step; returns whether its scores are the best so far."""
        better = scores[metric] < self.best.get(metric, math.inf)
        self.best = {"step": self.step, **scores} if better else self.best
        self.num_worse = 0 if better else self.num_worse + 1
        return better

    def end_reason(self, num_steps: int, patience: int | None, metric: str) -> str:
        """Says in words why the run is over at this step; empty while it goes on.

        Args:
            patience: validations in a row without a better `metric` that end the run; with None no number does.
        """
        if self.step >= num_steps:
            return f"all {num_steps} steps are done"
        if patience is None or self.num_worse < patience:
            return ""
        return f"no better {metric} in {self.num_worse} validations since step {self.best.get('step', 0)}"


def save_checkpoint(folder: Path, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: bytes) -> None:
    """Writes a checkpoint, its checksums last. `state` is what `state_bytes` returned.

    Raises:
        OSError: it cannot be written, as on a full disk; the message says how much room it takes. The folder is removed.
    """
    files = {WEIGHTS: save(weights), MOMENTS: save(moments), STATE: state}
    files[SUMS] = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()
    try:
        (folder / SUMS).unlink(missing_ok=True)  # of a damaged checkpoint of that step: until all is written, the folder is none
        for name, data in files.items():
            put(folder / name, data)
    except Exception as error:  # object storage raises many kinds
        with suppress(Exception):
            remove_folder(folder)
        room = f"it takes {sum(map(len, files.values())) / 1e6:.1f} MB"
        if is_local(folder):
            room += f", and {shutil.disk_usage(folder.parent).free / 1e6:.1f} MB are free there"
        hint = "make room and start the run again: the earlier checkpoints are as they were"
        why = getattr(error, "strerror", None) or error
        raise OSError(f"no checkpoint written to {folder} ({why}): {room}; {hint}") from error


def state_bytes(progress: Progress) -> bytes:
    """Makes the content of state.json."""
    return json.dumps({FORMAT_VERSION: CHECKPOINT_VERSION, **dataclasses.asdict(progress)}, indent=1).encode()


def damage(folder: Path) -> str:
    """Says in words which file of a checkpoint is not as it was written; empty for a whole checkpoint."""
    path = folder / SUMS
    try:
        sums = path.read_bytes().splitlines()
        for name in (WEIGHTS, MOMENTS, STATE):
            path = folder / name
            with path.open("rb") as file:  # in parts: the driver, which checks too, has no use for the whole
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if f"{digest}  {name}".encode() not in sums:
                return f"{path} is damaged: its checksum is not the one in {SUMS}"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        if not is_local(folder) or error.errno not in DAMAGE_ERRNOS:
            raise  # storage that does not answer, or forbids, is no damage: the next start will ask again
        return f"{path} cannot be read: {error.strerror}"
    return ""


def load_progress(folder: Path) -> Progress:
    """Reads the state of a checkpoint folder.

    Raises:
        ConfigError: the checkpoint is of another version than this code reads.
    """
    values = json.loads((folder / STATE).read_bytes())
    require_version(folder / STATE, values.pop(FORMAT_VERSION, None), CHECKPOINT_VERSION)
    return Progress(**values)


Checkpoint = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Progress]  # weights, moments and progress


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads the weights, moments and progress of a checkpoint folder. Else as `load_progress`."""
    return load_weights(folder), load((folder / MOMENTS).read_bytes()), load_progress(folder)


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the projector's weights of a checkpoint folder, by name."""
    return load((folder / WEIGHTS).read_bytes())


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / f"step-{step:08d}"


def _checkpoints(run_dir: Path) -> list[Path]:
    """Lists the folders that hold checksums, the last step first."""
    return sorted((path.parent for path in (run_dir / CHECKPOINTS).glob(f"step-*/{SUMS}")), reverse=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has a checkpoint, whole or damaged."""
    return bool(_checkpoints(run_dir))


def _by_score(folders: list[Path], metric: str) -> list[Path]:
    """Sorts by `metric`, the lowest first and of equals the last step; checkpoints without it, or unreadable, come last."""

    def score(folder: Path) -> float:
        try:
            return load_progress(folder).scores.get(metric, math.inf)
        except (FileNotFoundError, ValueError, TypeError):  # storage that does not answer is raised: it may be the best
            return math.inf

    return sorted(sorted(folders, reverse=True), key=score)


def _first_whole(run_dir: Path, folders: list[Path], warn: Callable[[str], None]) -> Path | None:
    wrong = []
    for folder in folders:
        wrong.append(damage(folder))
        if not wrong[-1]:
            for line in wrong[:-1]:
                warn(f"{line}; this checkpoint is passed over, and {folder.name} taken")
            return folder
    remedy = f"restore {run_dir / CHECKPOINTS} from a backup, or delete {run_dir} to start the run anew"
    require(not folders, f"{wrong and wrong[-1]}; no checkpoint of the run is whole: {remedy}")
    return None


def latest_checkpoint(run_dir: Path, warn: Callable[[str], None] = lambda line: None) -> Path | None:
    """Finds the last whole checkpoint of a run, which it resumes from; None for a new run.

    Args:
        warn: is called with a line for every damaged checkpoint, and every save that was cut off, that was passed over.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    finished = _checkpoints(run_dir)
    latest = _first_whole(run_dir, finished, warn)
    for folder in sorted((run_dir / CHECKPOINTS).glob("step-*")):
        if folder not in finished and (latest is None or folder.name > latest.name):
            taken = f"{latest.name} is taken" if latest else "the run begins with its first step"
            warn(f"{folder}: this save was cut off, and {taken}")
    return latest


def best_checkpoint(run_dir: Path, metric: str, warn: Callable[[str], None] = lambda line: None) -> Path | None:
    """Finds the whole checkpoint with the lowest `metric`, of equals the last. Else as `latest_checkpoint`."""
    return _first_whole(run_dir, _by_score(_checkpoints(run_dir), metric), warn)


def prune(run_dir: Path, latest: Path, num_best: int, metric: str) -> None:
    """Deletes what saves that were cut off left, and all checkpoints but `latest` and the best `num_best` up to its step.

    Checkpoints of later steps are damaged, or the run would not have come to `latest` again.
    """
    kept = {latest, *_by_score([folder for folder in _checkpoints(run_dir) if folder.name <= latest.name], metric)[:num_best]}
    for folder in sorted((run_dir / CHECKPOINTS).glob("step-*")):
        if folder not in kept:
            (folder / SUMS).unlink(missing_ok=True)  # first: a half-deleted folder is no checkpoint
            remove_folder(folder)


class CheckpointWriter:
    """Writes checkpoints from a thread, one at a time, while the run goes on; then deletes those that are not kept.

    An error is not raised but kept in `error`, for the workers must agree to stop. After it nothing more is written.

    Args:
        num_best: checkpoints with the lowest `metric` that are kept beside the last one.
        require_claim: is called before anything is written or deleted; raises if another start has taken the run over.
    """

    def __init__(self, run_dir: Path, num_best: int, metric: str, require_claim: Callable[[], None] = lambda: None):
        self.run_dir, self.num_best, self.metric, self.require_claim = run_dir, num_best, metric, require_claim
        self.error = ""
        self.write_s = 0.0  # how long the last write took; 0 while it goes on
        self.written_at = 0.0  # Unix time at which the last one was whole; 0 before the first
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._in_flight: Future | None = None

    def begin(self, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], progress: Progress) -> None:
        """Waits for the write before, and begins another. The tensors must not change meanwhile; `progress` may."""
        self.wait()
        if not self.error:
            self.write_s = 0.0
            state = state_bytes(progress)
            self._in_flight = self._thread.submit(self._write, progress.step, weights, moments, state)

    def wait(self) -> None:
        """Blocks until nothing is being written."""
        if self._in_flight is not None:
            self._in_flight.result()

    def _write(self, step: int, weights: dict, moments: dict, state: bytes) -> None:
        started = time.perf_counter()
        folder = checkpoint_folder(self.run_dir, step)
        try:
            self.require_claim()
            if not all(value.isfinite().all() for value in (*weights.values(), *moments.values())):
                raise ValueError(f"no checkpoint written to {folder}: the weights are not finite; go on from the one before")
            save_checkpoint(folder, weights, moments, state)
        except Exception as error:
            self.error = str(error) or repr(error)
            return
        self.write_s, self.written_at = time.perf_counter() - started, time.time()
        try:
            self.require_claim()
            prune(self.run_dir, folder, self.num_best, self.metric)
        except Exception as error:  # the new checkpoint is whole; the old ones only take room, and the next save tries again
            with suppress(Exception):
                self.require_claim()
                append_warning(self.run_dir, step, f"old checkpoints were not deleted: {error or repr(error)}")


def require_same_plan(run_dir: Path, identity: dict[str, Any]) -> Progress | None:
    """Refuses to resume a run under a plan by which its steps would train other rows, or the same rows in another form.

    Returns the progress that the run resumes from; None for a new run.

    Args:
        identity: what `TrainingPlan.identity` says of the plan now.

    Raises:
        ConfigError: it is not the one that the run was started with; the message names the setting that changed.
    """
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        return None
    progress = load_progress(checkpoint)
    for key in progress.plan | identity:
        then = f"{key}={progress.plan[key]}" if key in progress.plan else f"no {key}"
        is_same = key in progress.plan and key in identity and progress.plan[key] == identity[key]
        remedy = "set it back, or give the run another name"
        require(is_same, f"{run_dir}: was started with {then}, now it is {identity.get(key)}; {remedy}")
    return progress
