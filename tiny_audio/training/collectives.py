"""Values that all workers share; every function here must be called by all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed

from tiny_audio.config import ConfigError

Item = TypeVar("Item")


def all_sums(values: torch.Tensor) -> list[float]:
    """Sums values over the workers; the sums are equal to the last bit on each, so decisions based on them agree."""
    distributed.all_reduce(values)
    distributed.broadcast(values, src=0)
    return values.tolist()


def all_min(value: float, device: torch.device) -> float:
    """Returns the smallest value of any worker."""
    smallest = torch.tensor(value, device=device)
    distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
    return float(smallest)


def from_rank_zero(make: Callable[[], Item]) -> Item:
    """Returns what `make` returns on rank 0, which alone calls it.

    Raises:
        ConfigError: `make` raised it on rank 0; raised on all workers alike.
    """
    made: list[Item | ConfigError | None] = [None]
    if distributed.get_rank() == 0:
        try:
            made = [make()]
        except ConfigError as error:
            made = [error]
    distributed.broadcast_object_list(made)
    if isinstance(made[0], ConfigError):
        raise made[0]
    return made[0]


def gathered_by_rank_zero(item: Item) -> list[Item]:
    """Returns, on rank 0, every worker's item, by rank; on the others an empty list."""
    is_first = distributed.get_rank() == 0
    items = [item] * distributed.get_world_size() if is_first else []
    distributed.gather_object(item, items if is_first else None)
    return items


def all_gathered(items: list[Item]) -> list[Item]:
    """Returns the items of all workers in one list, by rank."""
    lists: list[list[Item]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part]
