"""What the workers add up between two logged steps, which rows they had to skip, and whether training may go on."""

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
from tiny_audio.training.collectives import all_gathered, all_sums

MAX_NON_FINITE_SHARE = 0.5  # of an interval's clips: if more than this fail, the clips are not to blame


class Sums(NamedTuple):
    """Holds an interval's sums over all workers; they are equal to the last bit on each."""

    loss: float  # nats
    num_tokens: float
    grad_norm: float  # sum over the steps; not finite if one of them was not
    num_clips: float
    num_skipped: float  # clips that were not finite
    audio_s: float
    wait_s: float  # for data
    stops: float  # number of workers that must stop

    @property
    def mean_loss(self) -> float:
        """Loss in nats per label token; NaN if no finite clip had one."""
        return self.loss / self.num_tokens if self.num_tokens else math.nan


class MicroBatch(NamedTuple):
    """Records which clips a worker computed together and which were finite; holds no clip, because clips take memory."""

    epoch: int
    step: int
    ids: list[str]  # "" for synthetic silence
    sources: list[str]
    finite: torch.Tensor  # (B,) booleans on the device


@dataclass
class Interval:
    """Collects what a worker trains from one logged step to the next."""

    loss_sum: torch.Tensor
    num_tokens: torch.Tensor  # label tokens of the clips that were finite
    grad_norm_sum: float | torch.Tensor = 0.0
    audio_s: float = 0.0
    wait_s: float = 0.0  # for data
    num_rows: int = 0  # over all workers
    micro_batches: list[MicroBatch] = field(default_factory=list)

    def add_clips(self, batch: WorkerBatch, clips: list[Clip], check: ClipCheck) -> None:
        """Records a micro-batch after its backward pass."""
        self.num_tokens += check.num_label_tokens
        ids = [clip.id if clip.text else "" for clip in clips]
        self.micro_batches.append(MicroBatch(batch.epoch, batch.step, ids, [clip.source for clip in clips], check.finite))

    def _finite(self) -> torch.Tensor:
        return torch.cat([part.finite for part in self.micro_batches])

    def sums(self, stops: bool) -> Sums:
        """Sums this interval over all workers, each of which must call it with whether it must stop."""
        finite = self._finite()
        measured = [self.loss_sum, self.num_tokens, self.grad_norm_sum, len(finite), (~finite).sum()]
        device = self.loss_sum.device
        on_device = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device).reshape(()) for value in measured])
        on_device[2] /= distributed.get_world_size()  # every worker holds the whole norm, not a share of it
        on_host = torch.tensor([self.audio_s, self.wait_s, stops], dtype=torch.float64, device=device)
        return Sums(*all_sums(torch.cat([on_device, on_host])))

    def skipped(self) -> list[SkippedRow]:
        """Gathers the rows of all workers whose clips were not finite, sorted by step. All workers must call it."""
        rank, finite, skipped = distributed.get_rank(), iter(self._finite().tolist()), []
        for part in self.micro_batches:
            rows = zip(part.ids, part.sources, strict=True)
            skipped += [SkippedRow(part.epoch, part.step, name, rank, of) for name, of in rows if not next(finite) and name]
        return sorted(all_gathered(skipped), key=lambda row: (row.step, row.rank, row.id))

    def fault(self, step: int, sums: Sums, skipped: list[SkippedRow], lowest_loss: float, max_loss_rise: float) -> str:
        """Returns why training must stop after `step`, in one line, or an empty string; all workers decide alike.

        Args:
            lowest_loss: the lowest mean loss of an earlier interval.
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
