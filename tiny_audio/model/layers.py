"""Computes the layers of the two frozen backbones on clips that lie end to end, without padding.

The layers' weights are transformers' own modules; what they compute here equals transformers' forward on each clip
alone. On GPUs in half precision attention runs in FlashAttention's kernel for sequences of varied length; elsewhere
clip by clip. Letters in shapes are those of `features.py`; N is the packed length.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention, silu

from tiny_audio.model.prompt import IGNORED_LABEL
from tiny_audio.model.segments import Segments

# cuDNN's kernel is the fastest on Hopper where all clips are padded alike; the others follow where it cannot run.
PADDED_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _attend_each(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries, keys, causal: bool) -> torch.Tensor:
    """Does what `attend` does, clip by clip."""
    attended = []
    for (first, last), (start, stop) in zip(pairwise(queries.tolist()), pairwise(keys.tolist()), strict=True):
        q, k, v = query[first:last], key[start:stop], value[start:stop]
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q)) if causal else None
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        attended.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(attended)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments, causal: bool
) -> torch.Tensor:
    """Attends from each clip's queries to its own keys; where causal, a clip's queries are its last positions.

    Takes (Q, heads, d) queries, and (N, key heads, d) keys and values; returns (Q, heads, d).
    """
    if query.is_cuda and query.dtype != torch.float32:
        window = (-1, 0) if causal else (-1, -1)
        bounds = (queries.bounds, keys.bounds, queries.longest, keys.longest)
        return varlen_attn(query, key, value, *bounds, window_size=window)
    return _attend_each(query, key, value, queries.bounds, keys.bounds, causal)


def _attend_padded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attends within rows: (B, E, heads, d) queries, keys and values -> (B, E, heads, d)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    with sdpa_kernel(PADDED_ATTENTION, set_priority=True):
        return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """Splits (..., heads * width) into (..., heads, width)."""
    return x.unflatten(-1, (-1, width))


def _queries_keys_values(attention: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projects (..., width) to queries, keys and values of (..., heads, d)."""
    query = _heads(attention.q_proj(hidden), attention.head_dim)
    key = _heads(attention.k_proj(hidden), attention.head_dim)
    return query, key, _heads(attention.v_proj(hidden), attention.head_dim)


def encoder_layer(layer: nn.Module, hidden: torch.Tensor, clips: Segments | None) -> torch.Tensor:
    """Computes a layer of Whisper's encoder on (N, C) packed as `clips` say, or, without them, on (B, E, C) of like rows."""
    attention = layer.self_attn
    query, key, value = _queries_keys_values(attention, layer.self_attn_layer_norm(hidden))
    attended = attend(query, key, value, clips, clips, causal=False) if clips else _attend_padded(query, key, value)
    hidden = hidden + attention.out_proj(attended.flatten(-2))
    return hidden + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(hidden))))


def stem(encoder: nn.Module, log_mels: torch.Tensor) -> torch.Tensor:
    """Applies Whisper's two convolutions and its positions to any even number of frames: (B, M, F) -> (B, F / 2, C)."""
    hidden = gelu(encoder.conv1(log_mels.to(encoder.conv1.weight.dtype)))
    hidden = gelu(encoder.conv2(hidden)).transpose(1, 2)
    return hidden + encoder.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))


def encode(encoder: nn.Module, log_mels: torch.Tensor, layer: Callable = encoder_layer) -> torch.Tensor:
    """Runs Whisper's encoder on rows alike in length; transformers' own takes the full window only.

    (B, M, F) -> (B, F / 2, C). At the full window it equals `WhisperEncoder.forward` (in evaluation mode).
    """
    hidden = stem(encoder, log_mels)
    for module in encoder.layers:
        hidden = layer(module, hidden, None)
    return encoder.layer_norm(hidden)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns (N, heads, d) by rotary positions (Su et al. 2021)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None]


def _mlp(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    normed = layer.post_attention_layernorm(hidden)
    return hidden + layer.mlp.down_proj(silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed))


def decoder_layer(layer: nn.Module, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, clips: Segments) -> torch.Tensor:
    """Computes a layer of SmolLM3: (N, D) -> (N, D). A layer without rotary positions is given `cos` 1 and `sin` 0."""
    attention = layer.self_attn
    query, key, value = _queries_keys_values(attention, layer.input_layernorm(hidden))
    attended = attend(_rotate(query, cos, sin), _rotate(key, cos, sin), value, clips, clips, causal=True)
    return _mlp(layer, hidden + attention.o_proj(attended.flatten(-2)))


def last_decoder_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    clips: Segments,
    wanted: torch.Tensor,
    answers: Segments,
) -> torch.Tensor:
    """Computes `decoder_layer` at the `wanted` (L,) positions only, each clip's last ones: (N, D) -> (L, D)."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    key, value = _heads(attention.k_proj(normed), attention.head_dim), _heads(attention.v_proj(normed), attention.head_dim)
    query = _rotate(_heads(attention.q_proj(normed[wanted]), attention.head_dim), cos[wanted], sin[wanted])
    attended = attend(query, _rotate(key, cos, sin), value, answers, clips, causal=True)
    return _mlp(layer, hidden[wanted] + attention.o_proj(attended.flatten(-2)))


def label_losses(norm: nn.Module, head: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Computes the cross entropies of (L,) labels, predicted from (L, D): (L,), zero where a label does not count."""
    logits = head(norm(hidden)).float()
    return cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")


class Layers(NamedTuple):
    """Holds the functions of this file that a model computes with, plain or compiled."""

    encoder: Callable = encoder_layer
    decoder: Callable = decoder_layer
    last_decoder: Callable = last_decoder_layer
    losses: Callable = label_losses


def compiled_layers() -> Layers:
    """Compiles each function once for all layers and lengths, at its first use (tens of seconds in all)."""
    return Layers(*(torch.compile(function, dynamic=True) for function in Layers()))
