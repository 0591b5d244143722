"""What the workers add up between two logged steps, which clips were left out of it, and what is wrong with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import distributed

from tiny_audio.audio.clip import Clip
from tiny_audio.counts import name_rows
from tiny_audio.data.batch import WorkerBatch
from tiny_audio.model.non_finite import ClipCheck
from tiny_audio.run.rejects import SkippedRow
from tiny_audio.training.collectives import all_sums

MAX_NON_FINITE_SHARE = 0.5  # of an interval's clips: where most of them fail, it is not their doing


class Sums(NamedTuple):
    """Over all workers; the same on each to the last bit."""

    loss: float
    num_tokens: float
    grad_norm: float  # of all steps; not finite if one of them was not
    num_clips: float
    num_skipped: float
    audio_s: float
    wait_s: float
    stops: float

    @property
    def mean_loss(self) -> float:
        """Nats per label token; NaN where there was none, or no clip was finite."""
        return self.loss / self.num_tokens if self.num_tokens else math.nan


class MicroBatch(NamedTuple):
    """Which clips a worker computed together, and which of them were finite. Not the clips: these are memory."""

    epoch: int
    step: int
    ids: list[str]  # empty for made silence
    finite: torch.Tensor  # (B,) on the device


@dataclass
class Interval:
    """What a worker saw since the last logged step."""

    loss_sum: torch.Tensor
    num_tokens: torch.Tensor  # labels of the clips that were finite
    grad_norm_sum: float | torch.Tensor = 0.0
    audio_s: float = 0.0
    wait_s: float = 0.0
    num_rows: int = 0  # of all workers
    micro_batches: list[MicroBatch] = field(default_factory=list)

    def add_clips(self, batch: WorkerBatch, clips: list[Clip], check: ClipCheck) -> None:
        """Takes in a micro-batch after its backward pass."""
        self.num_tokens += check.num_label_tokens
        ids = [clip.id if clip.text else "" for clip in clips]
        self.micro_batches.append(MicroBatch(batch.epoch, batch.step, ids, check.finite))

    def _finite(self) -> torch.Tensor:
        return torch.cat([part.finite for part in self.micro_batches])

    def sums(self, stops: bool) -> Sums:
        """All workers must call it."""
        finite = self._finite()
        measured = [self.loss_sum, self.num_tokens, self.grad_norm_sum, len(finite), (~finite).sum()]
        device = self.loss_sum.device
        total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device).reshape(()) for value in measured])
        total[2] /= distributed.get_world_size()  # which all workers have
        rest = torch.tensor([self.audio_s, self.wait_s, stops], dtype=torch.float64, device=device)
        return Sums(*all_sums(torch.cat([total, rest])))

    def skipped(self) -> list[SkippedRow]:
        """The rows of all workers whose clips were not finite, by step. All workers must call it."""
        rank, flags, mine = distributed.get_rank(), iter(self._finite().tolist()), []
        for part in self.micro_batches:
            mine += [SkippedRow(part.epoch, part.step, name, rank) for name in part.ids if not next(flags) and name]
        found: list[list[SkippedRow]] = [[] for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(found, mine)
        return sorted((row for part in found for row in part), key=lambda row: (row.step, row.rank, row.id))

    def fault(self, step: int, sums: Sums, skipped: list[SkippedRow], lowest_loss: float, max_loss_rise: float) -> str:
        """Why training must not go on after `step`, in one line; else an empty string. The same on all workers.

        Args:
            lowest_loss: of the intervals before.
        """
        remedy = "look at these rows, or try a lower optimizer.learning_rate or more warm-up; the same command goes on"
        if sums.num_skipped > MAX_NON_FINITE_SHARE * sums.num_clips:
            first = skipped[0] if skipped else SkippedRow(0, step, "silence", 0)
            ids = [row.id for row in skipped if (row.step, row.rank) == (first.step, first.rank)] or [first.id]
            return (
                f"the loss or its gradient is not a finite number for {sums.num_skipped:.0f} of {sums.num_clips:.0f} clips up to "
                f"step {step}; first at step {first.step + 1} on rank {first.rank}: rows {name_rows(ids)}; {remedy} from the "
                "last checkpoint"
            )
        last_ids = name_rows([name for name in self.micro_batches[-1].ids if name])
        where = f"rank {distributed.get_rank()}'s rows of the last step: {last_ids}; {remedy} from the last checkpoint"
        if not math.isfinite(sums.grad_norm):
            return f"the gradient's norm was not a finite number in the steps up to {step}; {where}"
        if sums.mean_loss > lowest_loss + max_loss_rise:
            rise = f"more than max_loss_rise={max_loss_rise:g} above its lowest, {lowest_loss:.2f}"
            return f"the loss has risen to {sums.mean_loss:.2f} nats per token at step {step}, {rise}; {where}"
        return ""
