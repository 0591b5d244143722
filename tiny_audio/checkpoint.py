"""What a run keeps: the trained weights, their moments and the position in the data. Nothing frozen, nothing sharded.

A checkpoint folder holds `projector.safetensors`, `optimizer.safetensors` and `state.json`; at full size about 141 MB.
Ray Train commits it and keeps the list of the committed ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tiny_audio.config import TrainConfig, require
from tiny_audio.plan import RowGroup

CHECKPOINTS = "checkpoints"  # Ray Train's folder in a run's
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of what is committed there
UNSCORED = 1e9  # of a checkpoint without a validation: worse than any; finite, for Ray's list would turn infinity into null
SCORES = ("val_loss", "val_wer")
WEIGHTS, MOMENTS, STATE = "projector.safetensors", "optimizer.safetensors", "state.json"


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
    """Writes a checkpoint into an empty folder."""
    save_file(weights, folder / WEIGHTS)
    save_file(moments, folder / MOMENTS)
    (folder / STATE).write_text(json.dumps(dataclasses.asdict(progress), indent=1))


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


def _committed(run_dir: Path) -> dict[str, Any]:
    snapshot = run_dir / CHECKPOINTS / SNAPSHOT
    return json.loads(snapshot.read_text()) if snapshot.is_file() else {}


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The last checkpoint that Ray Train committed for a run; None for a new run."""
    latest = _committed(run_dir).get("latest_checkpoint_result")
    return run_dir / CHECKPOINTS / latest["checkpoint_dir_name"] if latest else None


def best_checkpoint(run_dir: Path, metric: str) -> Path | None:
    """The kept checkpoint with the lowest `metric`, of equals the last; None for a new run."""
    kept = _committed(run_dir).get("checkpoint_results", [])
    if not kept:
        return None
    best = min(kept, key=lambda result: (result["metrics"].get(metric, UNSCORED), -result["metrics"]["step"]))
    return run_dir / CHECKPOINTS / best["checkpoint_dir_name"]


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
