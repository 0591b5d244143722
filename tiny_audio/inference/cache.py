"""Keeps the keys and values of the transcripts in progress, in one slot each; every slot fits the longest transcript.

A clip is bounded by the encoder's window and its text by a limit, so a slot's size is known and nothing is ever paged.
"""

from __future__ import annotations

import heapq

import torch


class SlotCache:
    """Holds the keys and values of each layer, (slots * length + 1, heads, d), slot after slot, and the slots that are free.

    The last position receives what padding writes and is never read.
    """

    def __init__(self, num_layers: int, num_slots: int, length: int, heads: tuple[int, int], dtype: torch.dtype, device):
        self.num_slots, self.length = num_slots, length
        self.waste = num_slots * length
        shape = (self.waste + 1, *heads)
        self.keys, self.values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)] for _ in range(2))
        self.free = list(range(num_slots))  # a heap: the lowest free slot goes first, so that slots in use stay close together

    def take(self) -> int:
        """Takes the lowest free slot and returns its number."""
        return heapq.heappop(self.free)

    def give_back(self, slot: int) -> None:
        heapq.heappush(self.free, slot)
