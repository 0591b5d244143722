"""A worker's next steps, laid out in tensors by a thread while the device computes the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from tiny_audio.audio.augment import MaskSpans
from tiny_audio.audio.clip import Clip
from tiny_audio.data.batch import WorkerBatch, deal, num_micro_batches
from tiny_audio.data.stream import WorkerStream
from tiny_audio.model.packing import PackedBatch, Packing, pack
from tiny_audio.training.feature_cache import FeatureCache

STEPS_AHEAD = 2


@dataclass
class ReadyStep:
    """A worker's share of a step, and the tensors to compute it with."""

    batch: WorkerBatch
    micro_batches: list[PackedBatch]

    @property
    def num_label_tokens(self) -> int:
        return sum(part.num_label_tokens for part in self.micro_batches)


class Feed:
    """The steps of a stream in order, each in as many micro-batches as its heaviest share needs: the same on all workers."""

    def __init__(
        self,
        stream: WorkerStream,
        num_steps: int,
        packing: Packing,
        micro_batch_s: float,
        cache: FeatureCache,
        draw_masks: Callable[[list[Clip], int], MaskSpans | None],  # of clips in an epoch
    ):
        self.stream, self.packing, self.micro_batch_s = stream, packing, micro_batch_s
        self.cache, self.draw_masks = cache, draw_masks
        self.left = num_steps
        self.thread = ThreadPoolExecutor(1, "feed")
        self.ahead: deque[Future[ReadyStep]] = deque()
        for _ in range(STEPS_AHEAD):
            self.make_next()

    def make_next(self) -> None:
        """Begins to lay out one more step. To be called once for each step taken, while the device is busy: not before its
        work is queued, for that is Python's work too.
        """
        if self.left > 0:
            self.left -= 1
            self.ahead.append(self.thread.submit(self._make))

    def _make(self) -> ReadyStep:
        batch = next(self.stream)
        shares = deal(batch.clips, num_micro_batches(batch.largest_share_s, self.micro_batch_s))
        draw_masks = partial(self.draw_masks, epoch=batch.epoch)
        parts = [pack(share, self.packing, self._known(share), draw_masks) for share in shares]
        return ReadyStep(batch, [part.pin() for part in parts] if torch.cuda.is_available() else parts)

    def _known(self, clips: list[Clip]) -> dict[int, torch.Tensor]:
        found = {i: self.cache.find(clip) for i, clip in enumerate(clips)}
        return {i: frames for i, frames in found.items() if frames is not None}

    def __next__(self) -> ReadyStep:
        """The next step; raises what the stream raised."""
        return self.ahead.popleft().result()
