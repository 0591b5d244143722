"""Describes where each clip lies in a packed tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Segments(NamedTuple):
    """Holds the `bounds` of clips in a packed tensor, (B + 1,) int32 from 0 to N, and the `longest` clip's length."""

    bounds: torch.Tensor
    longest: int

    def to(self, device: torch.device) -> Segments:
        """Returns the same on a device, without waiting for the copy."""
        return Segments(move(self.bounds, device), self.longest)


class SharedHead(NamedTuple):
    """Says how clips attend that all go on from one head: each clip to the head and to itself, and the head to itself.

    The rows of B clips lie end to end, (N,), and behind them the P rows of the head. Of their keys, (K,), those of a clip follow
    a copy of the head's, and the head's own come last.
    """

    queries: Segments  # the rows of each clip, and of the head
    keys: Segments  # the keys of each clip, and of the head
    rows: torch.Tensor  # (K,) whose key it is
    own: torch.Tensor  # (N + P,) where the key of each row lies
    copies: torch.Tensor  # (B, P) where the head's copies lie

    @property
    def num_clip_keys(self) -> int:
        """The number of keys without the head's own."""
        return len(self.rows) - self.copies.shape[1]


class Slots(NamedTuple):
    """Holds where the keys of B clips begin in a cache of slots, and how many there are.

    `starts` are (B + 1,) int32, the last of which is not read, as kernels want it; `lengths` (B,) int32, at most `longest`.
    """

    starts: torch.Tensor
    lengths: torch.Tensor
    longest: int


def move(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copies a tensor to a device without waiting for the copy."""
    return tensor.to(device, non_blocking=True)


def segments(lengths: Sequence[int]) -> Segments:
    """Returns segments of these lengths, end to end."""
    return Segments(torch.from_numpy(bounds_of(lengths).astype(np.int32)), max(lengths))


def share_head(lengths: Sequence[int], head_length: int) -> SharedHead:
    """Lets clips of these lengths, end to end, share a head."""
    queries, keys = segments([*lengths, head_length]), segments([*(head_length + n for n in lengths), head_length])
    starts = torch.from_numpy(bounds_of([head_length + n for n in lengths])[:-1])
    copies = starts[:, None] + torch.arange(head_length)
    num_keys = int(keys.bounds[-1])
    is_own = torch.ones(num_keys, dtype=torch.bool)
    is_own[copies.flatten()] = False
    own = is_own.nonzero()[:, 0]
    rows = torch.empty(num_keys, dtype=torch.int64)
    rows[own] = torch.arange(len(own))
    rows[copies] = torch.arange(len(own) - head_length, len(own))
    return SharedHead(queries, keys, rows, own, copies)


def bounds_of(lengths: Sequence[int]) -> np.ndarray:
    """Returns where runs of these lengths begin when they lie end to end, and where the last one ends: (B + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
