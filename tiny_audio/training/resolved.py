"""What one start of a run works from: the driver resolves it once from the config, and hands it to the workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upath import UPath

from tiny_audio.config import TrainConfig
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.run.checkpoint import Progress


@dataclass(frozen=True)
class ResolvedRun:
    """A start's settings, with all that follows from them before anything runs. It never changes."""

    config: TrainConfig  # with absolute paths, and `data.max_duration_s` within the encoder's window
    folder: Path | UPath
    plan: TrainingPlan
    identity: dict[str, Any]  # of the plan with all its row groups
    claim: str  # the token by which this start may write to the folder

    def end_reason(self, progress: Progress) -> str:
        """Says in words why the run is over; empty while it goes on."""
        config = self.config
        return progress.end_reason(config.num_steps, config.early_stopping_patience, config.score_metric)

    def for_workers(self) -> ResolvedRun:
        """The run without its row groups, of which there may be 100,000: the stream alone needs them."""
        return replace(self, plan=self.plan.without_groups())
