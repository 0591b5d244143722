"""What a run follows from: everything that decides which rows a step trains, in what form, and for which backbones.

The tasks that plan and decode are given a `TrainingPlan` and no config, so a setting that is not in it cannot change what they
do. Whatever is in it is in the run's identity too, so no run goes on under another plan unnoticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_audio.config import AugmentConfig, TrainConfig
from tiny_audio.data.labels import Truecaser
from tiny_audio.data.plan import RowGroup, Window, plan_windows

KEYS = "keys"  # in a field's metadata: a function from its value to its keys in the identity, where it is no plain JSON value


def _group_keys(groups: tuple[RowGroup, ...]) -> dict[str, Any]:
    """Identifies row groups by the names of their files and their sizes: a run's data may have moved.

    Rows without IDs have theirs from their file's place in its dataset, which is told here then in place of the name.
    """
    sizes = [(group.file_id or Path(group.path).name, group.num_rows) for group in groups]
    digest = hashlib.sha256(repr(sizes).encode()).hexdigest()[:12]
    return {"num_rows": sum(group.num_rows for group in groups), "shards": digest}


def _weight_keys(weights: dict[str, float]) -> dict[str, str]:
    return {"weights": " ".join(f"{weight:g}" for weight in weights.values())}


def _source_keys(weights: dict[str, float]) -> dict[str, str]:
    return {"source_weights": " ".join(f"{name}={weight:g}" for name, weight in sorted(weights.items()))}


def _column_keys(columns: dict[str, str]) -> dict[str, str]:
    """No key where no name is mapped, as in every run from before names could be."""
    return {"columns": " ".join(f"{name}={ours}" for name, ours in columns.items())} if columns else {}


def _truecaser_keys(truecaser: Truecaser | None) -> dict[str, Any]:
    return {"truecase": truecaser is not None, "truecase_text": truecaser.learned_from if truecaser else ""}


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that a run's steps follow from. No field has a default, so that none can be left out by accident."""

    groups: tuple[RowGroup, ...] = field(metadata={KEYS: _group_keys})
    dataset_weights: dict[str, float] = field(metadata={KEYS: _weight_keys})  # by dataset, in the order of `data.train`
    seed: int
    batch_rows: int
    steps_per_window: int
    silence_share: float
    max_duration_s: float  # within the encoder's window
    source_weights: dict[str, float] = field(metadata={KEYS: _source_keys})
    columns: dict[str, str] = field(metadata={KEYS: _column_keys})
    truecaser: Truecaser | None = field(metadata={KEYS: _truecaser_keys})
    augment: AugmentConfig
    audio_model_id: str
    text_model_id: str

    @classmethod
    def of(cls, config: TrainConfig, groups: list[RowGroup], truecaser: Truecaser | None) -> TrainingPlan:
        """The plan that a resolved config asks for, over the row groups of its shards."""
        return cls(
            groups=tuple(groups),
            dataset_weights=config.data.train_weights,
            seed=config.seed,
            batch_rows=config.data.batch_rows,
            steps_per_window=config.data.steps_per_window,
            silence_share=config.data.silence_share,
            max_duration_s=config.data.max_duration_s,
            source_weights=config.data.source_weights,
            columns=config.data.columns,
            truecaser=truecaser,
            augment=config.augment,
            audio_model_id=config.model.audio_model_id,
            text_model_id=config.model.text_model_id,
        )

    def identity(self) -> dict[str, Any]:
        """What checkpoints keep of the plan, in JSON values: every field has a key or several, by construction.

        A field that is a dataclass has a key for each field of its own, as "augment.noise_share".
        """
        identity: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if KEYS in part.metadata:
                identity |= part.metadata[KEYS](value)
            elif dataclasses.is_dataclass(value):
                identity |= {f"{part.name}.{key}": item for key, item in dataclasses.asdict(value).items()}
            else:
                identity[part.name] = value
        return identity

    def windows(self, num_steps: int, start_step: int = 0) -> Iterator[Window]:
        """Yields the windows that hold the steps from `start_step` to `num_steps`; see `plan_windows`."""
        return plan_windows(self.groups, self.seed, self.batch_rows, self.steps_per_window, num_steps, start_step)

    def without_groups(self) -> TrainingPlan:
        """The plan for tasks that are told their windows: each of them would have to load 100,000 row groups."""
        return dataclasses.replace(self, groups=())
