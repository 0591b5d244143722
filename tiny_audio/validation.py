"""Validation while training: loss and word error rate on a few dev clips, shared out among the workers."""

from __future__ import annotations

import torch
from torch import distributed

from tiny_audio.batch import deal, load_s, num_micro_batches
from tiny_audio.config import DataConfig, require
from tiny_audio.labels import make_truecaser
from tiny_audio.plan import list_shards, plan_pass, read_footers
from tiny_audio.shards import Clip, decode_slices
from tiny_audio.tensors import pack, silence
from tiny_audio.transcribe import Transcriber
from tiny_audio.wer import count_errors


def load_dev_clips(data: DataConfig) -> list[Clip]:
    """The first `max_dev_rows` dev clips, shortest first. Few enough for every worker to decode them all."""
    groups = read_footers(list_shards(data.dev), data.max_dev_rows)
    decoded = decode_slices(plan_pass(groups), data.max_duration_s, make_truecaser(data))
    reasons = sorted({reject.reason for reject in decoded.rejects})
    require(bool(decoded.clips), f"{data.dev}: every validation row is rejected: {', '.join(reasons)}")
    return sorted(decoded.clips, key=lambda clip: (len(clip.pcm), clip.id))


def _all_sums(values: list[float], device: torch.device) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.tolist()


class Validation:
    """Scores a model on its dev clips; every worker does its share, in the same number of parts."""

    def __init__(self, data: DataConfig, transcriber: Transcriber, micro_batch_s: float, grouped: bool):
        shares = deal(load_dev_clips(data), distributed.get_world_size())
        parts = num_micro_batches(max(load_s(share) for share in shares), micro_batch_s)
        self.parts = deal(shares[distributed.get_rank()], parts)
        packing = transcriber.model.packing(grouped)
        self.batches = [pack(clips, packing) for clips in self.parts]
        self.transcriber = transcriber

    def __call__(self) -> dict[str, float]:
        """`val_loss`, per label token, and `val_wer`, over all dev clips. All workers must call it."""
        model, device = self.transcriber.model, self.transcriber.model.decoder.device
        loss_sum = num_tokens = num_errors = num_words = 0.0
        for clips, batch in zip(self.parts, self.batches, strict=True):
            output = model(batch.to(device))  # with gradients, which nobody takes: so it runs as compiled for training
            loss_sum += float(output.loss_sum.detach())
            num_tokens += output.num_label_tokens
            heard = self.transcriber([clip.pcm for clip in clips or [silence()]])
            for clip, transcript in zip(clips, heard, strict=False):
                errors = count_errors(clip.text, transcript.text)
                num_errors += errors.num_errors
                num_words += errors.num_words
        sums = _all_sums([loss_sum, num_tokens, num_errors, num_words], device)
        return {"val_loss": sums[0] / max(1.0, sums[1]), "val_wer": sums[2] / max(1.0, sums[3])}
