"""What a run keeps: the trained weights, their moments and the position in the data. Nothing frozen, nothing sharded.

A checkpoint folder holds `projector.safetensors`, `optimizer.safetensors` and `state.json`, at full size about 141 MB, and
`SHA256SUMS`, written last: a folder without it is a save that was cut off, and no checkpoint. Which of them is gone on from,
exported or deleted is decided here and from these folders alone, so that all who ask agree.
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

from tiny_audio.config import TrainConfig, require
from tiny_audio.data.plan import RowGroup
from tiny_audio.run.metrics import append_warning
from tiny_audio.storage import is_local, put, remove_folder

CHECKPOINTS = "checkpoints"  # in a run's folder
WEIGHTS, MOMENTS, STATE = "projector.safetensors", "optimizer.safetensors", "state.json"
SUMS = "SHA256SUMS"  # as sha256sum writes and checks it
DAMAGE_ERRNOS = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)  # of a local disk, or of the checksums of its file system


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
    scores: dict[str, float] = field(default_factory=dict)  # of a validation at this very step, if there was one
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


def save_checkpoint(folder: Path, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: bytes) -> None:
    """Writes a checkpoint, its checksums last. `state` is what `state_bytes` gave.

    Raises:
        OSError: it cannot be written, as on a full disk: says how much room it takes. The folder is removed again.
    """
    files = {WEIGHTS: save(weights), MOMENTS: save(moments), STATE: state}
    files[SUMS] = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()
    try:
        (folder / SUMS).unlink(missing_ok=True)  # of a damaged checkpoint of that step: until the end there is none
        for name, data in files.items():
            put(folder / name, data)
    except Exception as error:  # those of object storage are of many kinds
        with suppress(Exception):
            remove_folder(folder)
        room = f"it takes {sum(map(len, files.values())) / 1e6:.1f} MB"
        if is_local(folder):
            room += f", and {shutil.disk_usage(folder.parent).free / 1e6:.1f} MB are free there"
        hint = "make room and start the run again: the earlier checkpoints are as they were"
        why = getattr(error, "strerror", None) or error
        raise OSError(f"no checkpoint written to {folder} ({why}): {room}; {hint}") from error


def state_bytes(progress: Progress) -> bytes:
    """What state.json holds."""
    return json.dumps(dataclasses.asdict(progress), indent=1).encode()


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint: a file of it that is not as it was written, in words; empty for a whole one."""
    path = folder / SUMS
    try:
        sums = path.read_bytes().splitlines()
        for name in (WEIGHTS, MOMENTS, STATE):
            path = folder / name
            with path.open("rb") as file:  # in parts: the driver, which asks too, has no use for all of it
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if f"{found}  {name}".encode() not in sums:
                return f"{path} is damaged: its checksum is not the one in {SUMS}"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        if not is_local(folder) or error.errno not in DAMAGE_ERRNOS:
            raise  # no answer, or no leave to read, is no damage: the same question will be asked at the next start
        return f"{path} cannot be read: {error.strerror}"
    return ""


def load_progress(folder: Path) -> Progress:
    """The state of a checkpoint folder."""
    return Progress(**json.loads((folder / STATE).read_bytes()))


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Progress]:
    """Weights, moments and progress of a checkpoint folder."""
    return load_weights(folder), load((folder / MOMENTS).read_bytes()), load_progress(folder)


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / WEIGHTS).read_bytes())


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / f"step-{step:08d}"


def _checkpoints(run_dir: Path) -> list[Path]:
    """The folders that hold checksums, the last step first."""
    return sorted((path.parent for path in (run_dir / CHECKPOINTS).glob(f"step-*/{SUMS}")), reverse=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has one to go on from, whole or damaged."""
    return bool(_checkpoints(run_dir))


def _by_score(folders: list[Path], metric: str) -> list[Path]:
    """The lowest `metric` first, of equals the last step; at the end those without a validation, or that cannot be read."""

    def score(folder: Path) -> float:
        try:
            return load_progress(folder).scores.get(metric, math.inf)
        except (FileNotFoundError, ValueError, TypeError):  # what storage does not answer is raised: it may be the best
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
    """The last whole checkpoint of a run, to go on from; None for a new run.

    Args:
        warn: is told of every damaged checkpoint, and every save that was cut off, that was passed over, in a line each.

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
    """The whole checkpoint with the lowest `metric`, of equals the last; None for a new run. Else as `latest_checkpoint`."""
    return _first_whole(run_dir, _by_score(_checkpoints(run_dir), metric), warn)


def prune(run_dir: Path, latest: Path, num_best: int, metric: str) -> None:
    """Deletes all checkpoints but `latest` and the best `num_best` up to its step, and what is left of saves cut off.

    Later ones were damaged, or the run would not have come to `latest` again.
    """
    kept = {latest, *_by_score([folder for folder in _checkpoints(run_dir) if folder.name <= latest.name], metric)[:num_best]}
    for folder in sorted((run_dir / CHECKPOINTS).glob("step-*")):
        if folder not in kept:
            (folder / SUMS).unlink(missing_ok=True)  # first: half deleted, it is none
            remove_folder(folder)


class CheckpointWriter:
    """Writes checkpoints from a thread, one at a time, while the run goes on; then deletes those that are not kept.

    A write that failed is not raised but kept in `error`: the workers must agree to stop. After it nothing more is written.

    Args:
        require_claim: asked before anything is written or deleted; raises where another start has taken the run over.
    """

    def __init__(self, config: TrainConfig, require_claim: Callable[[], None] = lambda: None):
        self.config, self.require_claim = config, require_claim
        self.error = ""
        self.write_s = 0.0  # what the last write took; 0 while it goes on
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._in_flight: Future | None = None

    def begin(self, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], progress: Progress) -> None:
        """Begins to write; waits for the write before. The tensors must stay as they are; `progress` may go on."""
        self.wait()
        if not self.error:
            self.write_s = 0.0
            state = state_bytes(progress)
            self._in_flight = self._thread.submit(self._write, progress.step, weights, moments, state)

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._in_flight is not None:
            self._in_flight.result()

    def _write(self, step: int, weights: dict, moments: dict, state: bytes) -> None:
        started = time.perf_counter()
        folder = checkpoint_folder(self.config.run_dir, step)
        try:
            self.require_claim()
            if not all(value.isfinite().all() for value in (*weights.values(), *moments.values())):
                raise ValueError(f"no checkpoint written to {folder}: the weights are not finite; go on from the one before")
            save_checkpoint(folder, weights, moments, state)
        except Exception as error:
            self.error = str(error) or repr(error)
            return
        self.write_s = time.perf_counter() - started
        try:
            self.require_claim()
            prune(self.config.run_dir, folder, self.config.keep_checkpoints, self.config.score_metric)
        except Exception as error:  # the new one is whole; what stays costs room, and the next save tries again
            with suppress(Exception):
                self.require_claim()
                append_warning(self.config.run_dir, step, f"old checkpoints were not deleted: {error or repr(error)}")


def require_same_plan(run_dir: Path, identity: dict[str, Any]) -> Progress | None:
    """Refuses to go on with a run whose steps would now train other rows, or the same ones otherwise.

    Returns what the run goes on from; None for a new one.

    Raises:
        ConfigError: naming the setting that changed.
    """
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        return None
    progress = load_progress(checkpoint)
    for key, value in progress.plan.items():
        now = identity.get(key)
        remedy = "set it back, or give the run another name"
        require(now == value, f"{run_dir}: was started with {key}={value}, now it is {now}; {remedy}")
    return progress
