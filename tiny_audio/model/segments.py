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


def bounds_of(lengths: Sequence[int]) -> np.ndarray:
    """Returns where runs of these lengths begin when they lie end to end, and where the last one ends: (B + 1,) int64."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
