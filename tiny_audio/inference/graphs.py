"""Records the kernels that a function launches as a CUDA graph, so that a slow host can launch them all at once.

A forward pass is a thousand kernels. With a few clips, the GPU finishes each before the host has launched the next.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch.nn.functional import pad


class Graphed:
    """Runs a function from tensors to a tensor as a CUDA graph, one for each shape of its first argument.

    Arguments are copied to where the graph reads them. A result is valid until the next call with that shape.
    """

    def __init__(self, function: Callable[..., torch.Tensor], pool: tuple[int, int]):
        self.function, self.pool = function, pool
        self.graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...], torch.Tensor]] = {}

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        shape = arguments[0].shape
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(*(argument.clone() for argument in arguments))
        graph, inputs, result = self.graphs[shape]
        for kept, argument in zip(inputs, arguments, strict=True):
            kept.copy_(argument, non_blocking=True)
        graph.replay()
        return result

    def _capture(self, *inputs: torch.Tensor):
        for _ in range(2):  # warm-up: work that is compiled or set up at first use cannot be captured
            self.function(*inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
            result = self.function(*inputs)
        return graph, inputs, result


def next_size(size: int, sizes: tuple[int, ...]) -> int:
    """Returns the smallest of ascending sizes that holds `size`, or `size` itself if none does."""
    place = bisect_left(sizes, size)
    return sizes[place] if place < len(sizes) else size


def padded(tensor: torch.Tensor, size: int, value: float = 0) -> torch.Tensor:
    """Pads the first dimension: (N, ...) -> (size, ...)."""
    return pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, size - len(tensor)), value=value)
