"""Qwen3 (Yang et al. 2025): Llama with a norm over each head of queries and keys."""

from __future__ import annotations

import torch
from torch import nn

from tiny_audio.model.decoders.family import Family, Heads


def norm_heads(attention: nn.Module, query: torch.Tensor, key: torch.Tensor) -> Heads:
    """Norms each head by itself, as `Qwen3Attention` does."""
    return attention.q_norm(query), attention.k_norm(key)


QWEN3 = Family("qwen3", "Qwen3", norm_heads=norm_heads)
