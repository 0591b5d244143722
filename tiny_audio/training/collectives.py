"""Numbers that all workers agree on."""

from __future__ import annotations

import torch
from torch import distributed


def all_sums(values: torch.Tensor) -> list[float]:
    """Sums over the workers, to the last bit the same on each: what they decide by them, they decide alike."""
    distributed.all_reduce(values)
    distributed.broadcast(values, src=0)
    return values.tolist()


def all_min(value: float, device: torch.device) -> float:
    """The least over all workers."""
    least = torch.tensor(value, device=device)
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    return float(least)
