"""Says how a family of decoders differs from the layout that all of them share, which is Llama's.

A layer norms its input, attends with `self_attn` (`q_proj`, `k_proj`, `v_proj`, `o_proj`), norms again, and ends in the
gated SiLU of `mlp` (`gate_proj`, `up_proj`, `down_proj`). `layers.py` computes that; a linear layer may have a bias or none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Heads = tuple[torch.Tensor, torch.Tensor]  # queries (Q, heads, d) and keys (N, key heads, d)


def _as_they_are(attention: nn.Module, query: torch.Tensor, key: torch.Tensor) -> Heads:
    return query, key


def _always(attention: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """Describes a family by what transformers calls it, what its chats begin with, and what its layers do otherwise.

    Args:
        model_type: the name in a checkpoint's config.json.
        name: its name in messages.
        system_prompt: the system message; without one, a chat template writes its own, if it has any.
        norm_heads: what a layer's attention makes of its queries and keys before they are rotated.
        has_rotations: whether a layer's attention has rotary positions.
    """

    model_type: str
    name: str
    system_prompt: str = ""
    norm_heads: Callable[[nn.Module, torch.Tensor, torch.Tensor], Heads] = _as_they_are
    has_rotations: Callable[[nn.Module], bool] = _always
