"""Computes the layers of the two frozen backbones on clips that lie end to end, without padding.

The layers' weights are transformers' own modules; what they compute here equals transformers' forward on each clip
alone. On GPUs in half precision attention runs in FlashAttention's kernel for sequences of varied length; elsewhere
clip by clip. Letters in shapes are those of `features.py`; N is the packed length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import cross_entropy, gelu, linear, scaled_dot_product_attention, silu

from tiny_audio.model.decoders.family import Family
from tiny_audio.model.prompt import IGNORED_LABEL
from tiny_audio.model.segments import Segments, SharedHead, Slots

# cuDNN's kernel is the fastest on Hopper where all clips are padded alike; the others follow where it cannot run.
PADDED_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def runs_flash_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Says whether FlashAttention's kernel runs there: in half precision, on GPUs since Ampere."""
    return device.type == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_each(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries, keys, causal: bool) -> torch.Tensor:
    """Does what `attend` does, clip by clip; takes the bounds of each clip's queries, and of its keys."""
    attended = []
    for (first, last), (start, stop) in zip(queries, keys, strict=True):
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
    return _attend_each(query, key, value, pairwise(queries.bounds.tolist()), pairwise(keys.bounds.tolist()), causal)


def attend_slots_each(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, queries: Segments, slots: Slots):
    """Attends from each clip's queries, its last positions, to the keys in its slot of a cache; clip by clip.

    (Q, heads, d), (P, key heads, d) twice -> (Q, heads, d).
    """
    starts = slots.starts[: len(slots.lengths)]
    ranges = zip(starts.tolist(), (starts + slots.lengths).tolist(), strict=True)
    return _attend_each(query, keys, values, pairwise(queries.bounds.tolist()), ranges, causal=True)


def attend_slots(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Attends from one new token of each clip to its slot of a cache, of which the first `lengths` (B,) positions count.

    (B, heads, d), (B, positions, key heads, d) twice -> (B, heads, d). Query heads that share a key head are rows of one
    product, so that each key is read once.
    """
    query = query.unflatten(1, (keys.shape[2], -1))
    mask = torch.arange(keys.shape[1], device=query.device) < lengths[:, None, None, None]
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask).flatten(1, 2)


def flash_attend_slots(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, queries: Segments, slots: Slots
) -> torch.Tensor:
    """Does what `attend_slots_each` does in FlashAttention's kernel, which reads no position beyond a clip's length.

    On GPUs only. For one query of each clip it folds the query heads, and splits long clips among blocks where few are
    computed: it does neither if a window bounds the keys.
    """
    bounds = (queries.bounds, slots.starts, queries.longest, slots.longest)
    window = {"window_size_left": -1, "window_size_right": 0 if queries.longest > 1 else -1}
    # torch's undocumented op: the public `varlen_attn` of torch 2.11 takes no length for each clip's keys (`seqused_k`)
    attention = torch.ops.aten._flash_attention_forward
    return attention(query, keys, values, *bounds, 0.0, False, False, seqused_k=slots.lengths, **window)[0]


def _attend_padded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attends within rows; takes (B, E, heads, d) queries, keys and values, and returns (B, E, heads, d)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    with sdpa_kernel(PADDED_ATTENTION, set_priority=True):
        return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """Splits (..., heads * width) into (..., heads, width)."""
    return x.unflatten(-1, (-1, width))


def _queries_keys_values(attention: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projects (..., width) to queries, keys and values of (..., heads, d)."""
    if hasattr(attention, "qkv_proj"):  # `join_projections` was here
        num_key_heads = attention.k_proj.out_features // attention.head_dim
        heads = _heads(attention.qkv_proj(hidden), attention.head_dim)
        return heads.split((heads.shape[-2] - 2 * num_key_heads, num_key_heads, num_key_heads), dim=-2)
    query = _heads(attention.q_proj(hidden), attention.head_dim)
    key = _heads(attention.k_proj(hidden), attention.head_dim)
    return query, key, _heads(attention.v_proj(hidden), attention.head_dim)


def encoder_layer(layer: nn.Module, hidden: torch.Tensor, clips: Segments | None) -> torch.Tensor:
    """Computes a layer of Whisper's encoder on (N, C), packed as `clips` say, or on (B, E, C) of equal rows without them."""
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


def encoder_layers(
    encoder: nn.Module, hidden: torch.Tensor, clips: Segments | None, layer: Callable = encoder_layer
) -> torch.Tensor:
    """Runs Whisper's encoder on the frames of its `stem`; transformers' own takes the full window only.

    Frames are (N, C), packed as `clips` say, or (B, E, C) of equally long rows without them. At the full window it equals
    `WhisperEncoder.forward` (in evaluation mode).
    """
    for module in encoder.layers:
        hidden = layer(module, hidden, clips)
    return encoder.layer_norm(hidden)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns (N, heads, d) by rotary positions (Su et al. 2021)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None]


def _mlp(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
    if hasattr(mlp, "gate_up_proj"):  # `join_projections` was here
        gate, up = mlp.gate_up_proj(normed).chunk(2, dim=-1)
    else:
        gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
    return hidden + mlp.down_proj(silu(gate) * up)


def before_attention(
    family: Family, layer: nn.Module, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes what a decoder's layer attends with: (N, D) -> queries (N, heads, d), keys and values (N, key heads, d)."""
    query, key, value = _queries_keys_values(layer.self_attn, layer.input_layernorm(hidden))
    query, key = family.norm_heads(layer.self_attn, query, key)
    return _rotate(query, cos, sin), _rotate(key, cos, sin), value


def after_attention(layer: nn.Module, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Computes the rest of the layer from its input (N, D) and what its queries attended to, (N, heads, d): (N, D)."""
    return _mlp(layer, hidden + layer.self_attn.o_proj(seen.flatten(-2)))


def before_attention_kept(
    family: Family,
    layer: nn.Module,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    where: torch.Tensor,
) -> torch.Tensor:
    """Computes `before_attention`, but puts keys and values at positions `where` (N,) of a cache's (P, key heads, d)."""
    query, key, value = before_attention(family, layer, hidden, cos, sin)
    keys.index_copy_(0, where, key)
    values.index_copy_(0, where, value)
    return query


def between_attentions(
    family: Family, layer: nn.Module, following: nn.Module, hidden: torch.Tensor, seen: torch.Tensor, *rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Does `after_attention` of a layer and `before_attention_kept` of the next, whose other arguments are the `rest`.

    Returns the hidden states between the two layers, and the next one's queries.
    """
    hidden = after_attention(layer, hidden, seen)
    return hidden, before_attention_kept(family, following, hidden, *rest)


def _joined(parts: list[nn.Module]) -> nn.Module:
    """Joins linear layers with one input into a single one; their weights become views of its own."""
    whole = copy.deepcopy(parts[0])
    for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
        if len(tensor):
            tensors = [getattr(part, name) for part in parts]
            tensor.data = torch.cat([part.data for part in tensors])
            for part, view in zip(tensors, tensor.data.split([len(part) for part in tensors]), strict=True):
                part.data = view
    return whole


def join_projections(decoder: nn.Module) -> None:
    """Joins a layer's query, key and value products into one, and gate and up into another: few large ones are faster."""
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "qkv_proj"):
            continue
        attention.qkv_proj = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
        mlp.gate_up_proj = _joined([mlp.gate_proj, mlp.up_proj])


class _Behind(torch.autograd.Function):
    """Puts a copy of the head's keys, or values, before those of each clip: (N + P, key heads, d) -> (K, key heads, d).

    In the gradients that the head gets of its copies, what is not finite counts as zero: it is of a clip that is left out,
    see `non_finite.py`.
    """

    @staticmethod
    def forward(ctx, x, shared):
        ctx.save_for_backward(shared.own, shared.copies)
        return x.index_select(0, shared.rows)

    @staticmethod
    def backward(ctx, gradients):
        own, copies = ctx.saved_tensors
        of_copies = gradients.index_select(0, copies.flatten()).unflatten(0, copies.shape)
        of_head = torch.where(of_copies.isfinite(), of_copies, 0).sum(0)
        of_clips, of_own_head = gradients.index_select(0, own).split([own.shape[0] - of_head.shape[0], of_head.shape[0]])
        return torch.cat([of_clips, of_own_head + of_head]), None


@torch.compiler.allow_in_graph  # as `fp8.frozen_product`
def behind_head(x: torch.Tensor, shared: SharedHead) -> torch.Tensor:
    """Puts a copy of the head's keys, or values, before those of each clip: (N + P, key heads, d) -> (K, key heads, d)."""
    return _Behind.apply(x, shared)


def decoder_layer(
    family: Family, layer: nn.Module, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, shared: SharedHead
) -> torch.Tensor:
    """Computes a decoder's layer on clips and their head: (N + P, D) -> (N + P, D).

    One without rotary positions is given `cos` 1 and `sin` 0.
    """
    query, key, value = before_attention(family, layer, hidden, cos, sin)
    key, value = behind_head(key, shared), behind_head(value, shared)
    return after_attention(layer, hidden, attend(query, key, value, shared.queries, shared.keys, causal=True))


def last_decoder_layer(
    family: Family,
    layer: nn.Module,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    shared: SharedHead,
    wanted: torch.Tensor,
    answers: Segments,
) -> torch.Tensor:
    """Computes `decoder_layer` at the `wanted` (L,) positions only, each clip's last ones: (N + P, D) -> (L, D)."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    key, value = _heads(attention.k_proj(normed), attention.head_dim), _heads(attention.v_proj(normed), attention.head_dim)
    query, key = family.norm_heads(attention, _heads(attention.q_proj(normed[wanted]), attention.head_dim), key)
    query, key = _rotate(query, cos[wanted], sin[wanted]), _rotate(key, cos, sin)
    key, value = (behind_head(x, shared)[: shared.num_clip_keys] for x in (key, value))
    clips = Segments(shared.keys.bounds[:-1], shared.keys.longest)
    attended = attend(query, key, value, answers, clips, causal=True)
    return _mlp(layer, hidden[wanted] + attention.o_proj(attended.flatten(-2)))


def label_losses(head: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Computes the cross entropies of (L,) labels, predicted from (L, D): (L,), zero where a label does not count."""
    logits = linear(hidden, head.weight).float()
    return cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Returns the likeliest token of each row of logits, (B, V) -> (2, B) float32: its id, and its natural log-probability.

    float32 holds ids up to 2**24 exactly.
    """
    logits = logits.float()
    return torch.stack([logits.argmax(-1).float(), logits.amax(-1) - logits.logsumexp(-1)])


class Layers(NamedTuple):
    """Holds the functions of this file that a model computes with, plain or compiled."""

    encoder: Callable
    decoder: Callable
    last_decoder: Callable
    losses: Callable
    between_attentions: Callable
    likeliest: Callable


def plain_layers(family: Family, made: Callable[[Callable], Callable] = lambda function: function) -> Layers:
    """Returns the functions for a decoder of that family, each as it is `made` of the plain one."""
    decoder, last_decoder, between = (
        partial(made(function), family) for function in (decoder_layer, last_decoder_layer, between_attentions)
    )
    return Layers(made(encoder_layer), decoder, last_decoder, made(label_losses), between, made(likeliest))


def compiled_layers(family: Family) -> Layers:
    """Compiles each function once for all layers and lengths, at its first use (tens of seconds in all).

    Torch compiles a function anew at most eight times, and all `partial` ones count together: so the families are bound last.
    """
    return plain_layers(family, partial(torch.compile, dynamic=True))
