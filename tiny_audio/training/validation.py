"""Validation during training: loss and word error rate on a few dev clips, which the workers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch import distributed

from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError
from tiny_audio.counts import name_rows
from tiny_audio.data.batch import deal, load_s, num_micro_batches
from tiny_audio.evaluation.wer import count_errors, normalize
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.packing import PackedBatch, pack, silence
from tiny_audio.training.collectives import all_gathered, all_sums


def wer_parts(clips: list[Clip], rank: int, num_workers: int, rows_at_once: int) -> list[list[Clip]]:
    """Splits a worker's share of the clips into parts of one transcriber batch each; every worker gets equally many parts."""
    clips = sorted(clips, key=lambda clip: (len(clip.pcm), clip.id))
    num_parts = -(-len(clips) // (num_workers * rows_at_once))
    share = clips[rank::num_workers]
    return [share[part::num_parts] for part in range(num_parts)]


Transcribe = Callable[[Sequence[np.ndarray]], list[str]]  # (S,) int16 clips -> their texts


class Validation:
    """Scores a model on the dev clips; each worker computes its share, in as many parts as every other."""

    def __init__(
        self,
        clips: list[Clip],
        max_wer_rows: int,  # of the clips, the first so many are transcribed
        model: ASRModel,
        transcribe: Transcribe,
        rows_at_once: int,  # clips in one batch of the transcriber
        micro_batch_s: float,
        grouped: bool,
        on_part: Callable[[list[str]], None],  # called with the row ids of each part before it is computed
    ):
        rank, num_workers = distributed.get_rank(), distributed.get_world_size()
        packing = model.packing(grouped)
        shares = deal(clips, num_workers)
        num_parts = num_micro_batches(max(load_s(share) for share in shares), micro_batch_s)
        self.loss_parts = [pack(part, packing) for part in deal(shares[rank], num_parts)]
        self.wer_parts = wer_parts(clips[:max_wer_rows], rank, num_workers, rows_at_once)
        self.silence = silence(packing)  # in place of a part that has no clips
        self.model, self.transcribe, self.on_part = model, transcribe, on_part

    def __call__(self) -> dict[str, float]:
        """Returns `val_loss`, per label token, and `val_wer` unless `max_wer_rows` is 0. All workers must call it.

        Raises:
            ConfigError: a clip's loss is not finite; raised on all workers alike.
        """
        scores = {"val_loss": self._loss()}
        return {**scores, "val_wer": self._wer()} if self.wer_parts else scores

    def _loss(self) -> float:
        device = self.model.decoder.device
        loss_sum, bad_ids = 0.0, []
        for batch in self.loss_parts:
            self.on_part([clip.id for clip in batch.rows])
            part_loss, finite = self._batch_loss(batch.to(device))
            loss_sum += part_loss
            bad_ids += [clip.id for clip, is_finite in zip(batch.rows, finite, strict=True) if not is_finite]
        num_tokens = sum(batch.num_label_tokens for batch in self.loss_parts)
        loss_sum, num_tokens, num_bad = all_sums(
            torch.tensor([loss_sum, num_tokens, len(bad_ids)], dtype=torch.float64, device=device)
        )
        if num_bad:
            rows = name_rows(sorted(all_gathered(bad_ids)))
            remedy = "leave these rows out of data.dev; if they are most of it, try a lower optimizer.learning_rate"
            raise ConfigError(f"the validation loss is not a finite number for rows {rows}; {remedy}")
        return loss_sum / max(1.0, num_tokens)

    def _batch_loss(self, batch: PackedBatch) -> tuple[float, list[bool]]:
        """Returns the decoder's loss, and which clips were finite. Gradients stay on, for the layers compiled in training."""
        output = self.model(batch)
        return float(output.clips.loss_sum), output.clips.finite.tolist()

    def _wer(self) -> float:
        num_errors = num_words = 0.0
        for clips in self.wer_parts:
            self.on_part([clip.id for clip in clips])
            transcripts = self.transcribe([clip.pcm for clip in clips or [self.silence]])
            for clip, transcript in zip(clips, transcripts, strict=False):
                errors = count_errors(clip.text, transcript, normalize)
                num_errors += errors.num_errors
                num_words += errors.num_words
        device = self.model.decoder.device
        num_errors, num_words = all_sums(torch.tensor([num_errors, num_words], dtype=torch.float64, device=device))
        return num_errors / max(1.0, num_words)


def made_once(item: ray.ObjectRef) -> Any:
    """Returns what a task made for all workers, or raises its error as if it had been made here."""
    try:
        return ray.get(item)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
