"""Keys and values of the transcripts in progress: as many slots as may run together, each long enough for the longest.

A clip is bounded by the encoder's window and its text by a limit, so a slot's size is known and nothing is ever paged.
"""

from __future__ import annotations

import heapq

import torch


class SlotCache:
    """A (slots, length, heads, d) tensor of keys and one of values for each layer, and the slots that are free."""

    def __init__(self, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.num_slots, self.length = shape[:2]
        self.keys, self.values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)] for _ in range(2))
        self.free = list(range(self.num_slots))  # a heap: the lowest goes first, so that those in use lie close together

    def take(self) -> int:
        """A free slot, no longer free."""
        return heapq.heappop(self.free)

    def give_back(self, slot: int) -> None:
        heapq.heappush(self.free, slot)

    def write(self, layer: int, where: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keys and values (N, heads, d) to the positions `where` (N,), which are slot * length + position."""
        self.keys[layer].flatten(0, 1).index_copy_(0, where, key)
        self.values[layer].flatten(0, 1).index_copy_(0, where, value)
