"""A worker's next steps, packed into tensors by a thread while the device computes the current one."""

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

STEPS_AHEAD = 2  # steps being packed or ready


@dataclass
class ReadyStep:
    """Holds a worker's share of a step and its clips as packed tensors."""

    batch: WorkerBatch
    micro_batches: list[PackedBatch]

    @property
    def num_label_tokens(self) -> int:
        return sum(part.num_label_tokens for part in self.micro_batches)


class Feed:
    """Yields a stream's steps in order, packed ahead by a thread.

    Each step has as many micro-batches as the heaviest worker's share needs, so all workers run equally many.
    """

    def __init__(
        self,
        stream: WorkerStream,
        num_steps: int,
        packing: Packing,
        micro_batch_s: float,
        cache: FeatureCache,
        draw_masks: Callable[[list[Clip], int], MaskSpans | None],  # takes clips and their epoch
    ):
        self.stream, self.packing, self.micro_batch_s = stream, packing, micro_batch_s
        self.cache, self.draw_masks = cache, draw_masks
        self.num_steps_left = num_steps  # not yet begun
        self.thread = ThreadPoolExecutor(1, "feed")
        self.ahead: deque[Future[ReadyStep]] = deque()
        for _ in range(STEPS_AHEAD):
            self.make_next()

    def make_next(self) -> None:
        """Starts packing one more step.

        Call it once per step taken, after the device's work is queued: queueing and packing share the interpreter's
        lock, and the device would wait.
        """
        if self.num_steps_left > 0:
            self.num_steps_left -= 1
            self.ahead.append(self.thread.submit(self._pack_next))

    def _pack_next(self) -> ReadyStep:
        batch = next(self.stream)
        shares = deal(batch.clips, num_micro_batches(batch.largest_share_s, self.micro_batch_s))
        draw_masks = partial(self.draw_masks, epoch=batch.epoch)
        parts = [pack(share, self.packing, self._cached_frames(share), draw_masks) for share in shares]
        return ReadyStep(batch, [part.pin() for part in parts] if torch.cuda.is_available() else parts)

    def _cached_frames(self, clips: list[Clip]) -> dict[int, torch.Tensor]:
        by_index = {i: self.cache.find(clip) for i, clip in enumerate(clips)}
        return {i: frames for i, frames in by_index.items() if frames is not None}

    def __next__(self) -> ReadyStep:
        """Returns the next step, or raises what the stream raised while it was packed."""
        return self.ahead.popleft().result()
