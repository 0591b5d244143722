"""Computes for the engine: reads prompts into the cache's slots, and makes a token for each slot in use.

On a GPU the layers are compiled and run as CUDA graphs of a few sizes; elsewhere they run as plain torch. Row i of a decode
step is slot i, in use or not, so nothing is gathered when clips join and leave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from tiny_audio.audio.clip import Clip, num_audio_tokens
from tiny_audio.inference.cache import SlotCache
from tiny_audio.inference.engine import Tokens
from tiny_audio.inference.graphs import Graphed, next_size, padded
from tiny_audio.inference.hearing import hear
from tiny_audio.inference.scheduler import Request, Token
from tiny_audio.model.layers import (
    Layers,
    after_attention,
    attend_slots,
    attend_slots_each,
    before_attention_kept,
    compiled_layers,
    flash_attend_slots,
    join_projections,
    plain_layers,
    runs_flash_attention,
)
from tiny_audio.model.packing import pack
from tiny_audio.model.segments import Segments, Slots, bounds_of, move

MAX_PREFILL_ROWS, MAX_PREFILL_TOKENS = 64, 8192  # limits of a prefill: about 0.1 s on an H100, while all running clips wait
MAX_SLOTS_GPU, MAX_SLOTS_CPU = 512, 32
CACHE_SHARE = 0.5  # largest share of the GPU's free memory

# Sizes that graphs are captured for, close enough to one another that padding costs little: 4 % where 8 clips join.
PROMPT_SIZES = (*range(128, 3072, 128), *range(3072, MAX_PREFILL_TOKENS + 1, 256))  # tokens; each of two or four frames
WINDOW_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)  # clips, each padded to the encoder's window
STEP_SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # slots; 1 would compile the layers again


log = logging.getLogger(__name__)


def plain(function: Callable) -> Callable:
    """Returns a function as it is."""
    return function


def free_bytes(device: torch.device) -> int:
    """Returns the GPU memory that torch can still give, including what it keeps for reuse."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


class Runner:
    """Computes with an `ASRModel` and the slots of its cache.

    With `graphs`, the model keeps compiled layers, and joined projections. Where they cannot be had, it says so in the log,
    and `fallback` says why.
    """

    def __init__(self, model: PreTrainedModel, max_new_tokens: int, max_slots: int | None = None, graphs: bool = False):
        self.model, self.device = model, model.decoder.device
        self.head = torch.tensor(model.prompt.prefix, dtype=torch.int64)  # ids that begin every prompt; each slot holds them
        self.packing = model.packing()
        config, attention, dtype = model.decoder.config, model.decoder.model.layers[0].self_attn, model.decoder.dtype
        per_token = self.packing.frames_per_token
        self.longest_frames = per_token * num_audio_tokens(model.window_num_samples, per_token)  # of a clip
        self.on_gpu = self.device.type == "cuda"
        self.lookahead = int(self.on_gpu)
        self.flash = runs_flash_attention(self.device, dtype)
        self.length = self.prompt_tokens(model.window_num_samples) + max_new_tokens
        heads = (config.num_key_value_heads, attention.head_dim)
        slot_bytes = 2 * config.num_hidden_layers * self.length * heads[0] * heads[1] * dtype.itemsize
        if max_slots is None:
            max_slots = MAX_SLOTS_GPU if self.on_gpu else MAX_SLOTS_CPU
        if self.on_gpu:
            max_slots = max(2, min(max_slots, int(CACHE_SHARE * free_bytes(self.device) / slot_bytes)))
        self.cache = SlotCache(config.num_hidden_layers, max_slots, self.length, heads, dtype, self.device)
        self.ids = torch.zeros(max_slots, dtype=torch.int64, device=self.device)  # the newest token of each slot
        self.rows = torch.arange(max_slots + 1, dtype=torch.int32, device=self.device)
        self.starts = self.rows * self.length  # of the slots in the cache
        self.siblings: dict[str, nn.Module] = {}  # projectors of further models with these backbones, by their names
        self.fallback = ""
        self._compute_with(plain_layers(model.family), plain)
        self._fill_heads()
        if graphs and not self.flash:
            self.fall_back(f"FlashAttention's kernel does not run in {dtype} on this device ({self.device})")
        elif graphs:
            join_projections(model.decoder.model)
            model.layers = compiled_layers(model.family)
            self._compute_with(model.layers, partial(Graphed, pool=torch.cuda.graph_pool_handle()))

    def _compute_with(self, layers: Layers, run_as: Callable) -> None:
        """Computes with these layers from now on, plain or as graphs."""
        self.layers, self.graphed = layers, run_as is not plain
        functions = (self._encode_windows, self._encode_packed, self._read_prompts, self._step)
        self.encode_windows, self.encode_packed, self.read_prompts, self.step = map(run_as, functions)

    def fall_back(self, reason: str) -> None:
        """Computes without graphs and compiled layers from now on, and says so."""
        self.fallback = f"transcription runs without CUDA graphs, and several times slower: {reason}"
        log.warning(self.fallback)
        self.model.layers = plain_layers(self.model.family)
        self._compute_with(self.model.layers, plain)

    @torch.no_grad()
    def _fill_heads(self) -> None:
        """Computes the keys and values of the prompt's head in the first slot, and copies them to all others."""
        positions, num_tokens = self._moved(torch.arange(len(self.head))), len(self.head)
        hidden = self.model.decoder.model.embed_tokens(self._moved(self.head))
        slot = Slots(self.starts[:2], self.starts[:1] + num_tokens, self.length)
        clip = Segments(self.starts[:1].new_tensor([0, num_tokens]), num_tokens)
        self._layers(hidden, positions, positions, clip, slot)
        for kept in (*self.cache.keys, *self.cache.values):
            kept[: self.cache.waste].unflatten(0, (-1, self.length))[1:, :num_tokens] = kept[:num_tokens]

    def prompt_tokens(self, num_samples: int) -> int:
        """Returns the number of positions that a clip's prompt takes, including its audio."""
        per_token = self.packing.frames_per_token
        return len(self.head) + num_audio_tokens(num_samples, per_token) + len(self.packing.prompt.suffix)

    def join(self, requests: list[Request]) -> None:
        for request in requests:
            request.slot = self.cache.take()

    def leave(self, request: Request) -> None:
        self.cache.give_back(request.slot)

    @torch.no_grad()
    def prefill(self, requests: list[Request]) -> Tokens:
        """Encodes clips, reads their prompts into their slots, and makes the first token of each."""
        clips = [Clip(str(number), request.pcm, "") for number, request in enumerate(requests)]
        batch = pack(clips, self.packing, unanswered=True)
        order = [int(clip.id) for clip in batch.rows]
        slots = np.array([requests[number].slot for number in order])
        num_tokens = np.diff(batch.first_tokens.numpy(), append=len(batch.audio)).tolist()
        where = torch.from_numpy(np.repeat(slots * self.length, np.diff(batch.clips.bounds.numpy()))) + batch.positions
        where, slots = map(self._moved, (where, torch.from_numpy(slots)))
        batch = (batch.pin() if self.on_gpu else batch).to(self.device)
        frames = self.model.encode_batch(batch, self._encode)
        for number, letters in zip(order, hear(self.model.ctc_head, frames, batch.num_frames), strict=True):
            requests[number].letters = letters
        audio = self._project(frames, batch.first_tokens, num_tokens, [requests[number].model for number in order])
        hidden = self.model.decoder.model.embed_tokens(batch.ids).index_copy(0, batch.audio, audio)
        positions, rows, bounds, predicting = batch.positions, slots, batch.clips.bounds, batch.predicting
        if self.graphed:
            num_tokens = next_size(len(hidden), PROMPT_SIZES)
            bounds = padded(bounds, MAX_PREFILL_ROWS + 1, len(hidden))
            hidden, positions, where = padded(hidden, num_tokens), padded(positions, num_tokens), self._wasted(where, num_tokens)
            rows, predicting = padded(rows, MAX_PREFILL_ROWS), padded(predicting, MAX_PREFILL_ROWS)
        tokens = self.read_prompts(hidden, positions, where, rows, bounds, predicting)[:, : len(requests)]
        self.ids.index_copy_(0, slots, tokens[0].long())
        return self._read(tokens, np.argsort(order))

    def _project(
        self, frames: torch.Tensor, first_tokens: torch.Tensor, num_tokens: list[int], models: list[str | None]
    ) -> torch.Tensor:
        """Turns the encoder frames of clips (k A, C) into audio tokens (A, D): for each model, those of its clips together.

        Args:
            frames: the clips, end to end.
            first_tokens: (B,) each clip's first token.
            num_tokens: the number of tokens of each clip.
            models: the model of each clip.
        """
        if not self.siblings:
            return self.model.project(frames, first_tokens)
        parts, projected = frames.unflatten(0, (sum(num_tokens), -1)).split(num_tokens), {}
        for model in set(models):
            rows = [row for row, asked in enumerate(models) if asked == model]
            counts = [num_tokens[row] for row in rows]
            first = self._moved(torch.from_numpy(bounds_of(counts)[:-1]))
            together = torch.cat([parts[row] for row in rows]).flatten(0, 1)
            audio = self.model.project(together, first, self.siblings[model] if model else None)
            projected |= zip(rows, audio.split(counts), strict=True)
        return torch.cat([projected[row] for row in range(len(models))])

    def _wasted(self, where: torch.Tensor, size: int) -> torch.Tensor:
        """Pads places in the cache, (N,) -> (size,), so that rows beyond N are written to no slot."""
        return padded(where, size, self.cache.waste)

    def _encode(self, hidden: torch.Tensor, frames: Segments | None) -> torch.Tensor:
        """Runs the encoder's layers on whole windows (B, E, C) or packed frames (N, C)."""
        if not self.graphed:
            return self.model.encoder_layers(hidden, frames)
        if frames is None:
            return self.encode_windows(padded(hidden, next_size(len(hidden), WINDOW_SIZES)))[: len(hidden)]
        per_token = self.packing.frames_per_token
        num_frames = per_token * next_size(-(-len(hidden) // per_token), PROMPT_SIZES)
        return self.encode_packed(padded(hidden, num_frames), padded(frames.bounds, MAX_PREFILL_ROWS + 1, len(hidden)))[
            : len(hidden)
        ]

    def _encode_windows(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.encoder_layers(hidden, None)

    def _encode_packed(self, hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        return self.model.encoder_layers(hidden, Segments(bounds, self.longest_frames))

    def _read_prompts(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        where: torch.Tensor,
        slots: torch.Tensor,
        bounds: torch.Tensor,
        predicting: torch.Tensor,
    ) -> torch.Tensor:
        """Reads prompts (N, D), of clips as `bounds` say, into their `slots` (B,); returns the first token of each, (2, B)."""
        lengths = positions[predicting] + 1  # a clip's last position predicts
        in_cache = Slots(pad(self.starts[slots], (0, 1)), lengths.int(), self.length)
        hidden, seen = self._layers(hidden, positions, where, Segments(bounds, self.length), in_cache)
        return self._next_tokens(hidden[predicting], seen[predicting])

    @torch.no_grad()
    def decode(self, requests: list[Request]) -> Tokens:
        """Makes the next token of each request."""
        rows = [request.slot for request in requests]
        num_rows = max(rows) + 1
        if self.graphed:
            num_rows = min(next_size(num_rows, STEP_SIZES), self.cache.num_slots)
        plan = torch.full((3, num_rows), -1)
        plan[0] = len(self.head)  # a free slot takes what its row writes where a prompt will go
        plan[0, rows] = torch.tensor([request.position for request in requests])
        for request in requests:
            if request.num_launched in request.banned:  # it was set back, to ids that the host knows
                plan[1:, request.slot] = torch.tensor([request.ids[-1], request.banned[request.num_launched]])
        tokens = self.step(self._moved(plan), self.ids[:num_rows])
        self.ids[:num_rows] = tokens[0]
        return self._read(tokens, rows)

    def _step(self, plan: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Makes the next token of each of the first B slots, (2, B), after `ids` (B,).

        The `plan` (3, B) has the positions of `ids`, ids that replace them, and ids that may not follow; -1 where there are none.
        """
        positions, known, banned = plan
        ids = torch.where(known < 0, ids, known)
        where, lengths = self.starts[: len(ids)] + positions, (positions + 1).int()
        hidden = self.model.decoder.model.embed_tokens(ids)
        queries, slots = Segments(self.rows[: len(ids) + 1], 1), Slots(self.starts[: len(ids) + 1], lengths, self.length)
        return self._next_tokens(*self._layers(hidden, positions, where, queries, slots), banned)

    def _layers(
        self, hidden: torch.Tensor, positions: torch.Tensor, where: torch.Tensor, queries: Segments, slots: Slots
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs all layers up to the last one's attention; returns that layer's input (N, D) and what its queries attended to.

        Args:
            hidden: (N, D) embeddings.
            positions: (N,) position of each row in its clip.
            where: (N,) place of each row in the cache.
            queries: the rows of each clip.
            slots: the keys of each clip, these rows' own included.
        """
        layers, turns = self.model.decoder.model.layers, self.model.rotations(hidden, positions)
        caches = list(zip(self.cache.keys, self.cache.values, strict=True))
        query = before_attention_kept(self.model.family, layers[0], hidden, *turns[0], *caches[0], where)
        for number, (layer, following) in enumerate(pairwise(layers)):
            seen = self._attend(query, *caches[number], queries, slots)
            hidden, query = self.layers.between_attentions(
                layer, following, hidden, seen, *turns[number + 1], *caches[number + 1], where
            )
        return hidden, self._attend(query, *caches[-1], queries, slots)

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, queries: Segments, slots: Slots
    ) -> torch.Tensor:
        """Attends from each clip's queries to its slot of a layer's cache: (N, heads, d)."""
        if self.flash:
            return flash_attend_slots(query, keys, values, queries, slots)
        if queries.longest > 1:
            return attend_slots_each(query, keys, values, queries, slots)
        longest = int(slots.lengths.max())
        rows = (x[: len(query) * self.length].unflatten(0, (-1, self.length))[:, :longest] for x in (keys, values))
        return attend_slots(query, *rows, slots.lengths)

    def _next_tokens(self, hidden: torch.Tensor, seen: torch.Tensor, banned: torch.Tensor | None = None) -> torch.Tensor:
        """Finishes the last layer after its attention: (B, D) and (B, heads, d) -> the likeliest tokens, (2, B).

        No `banned` (B,) id is among them; -1 bans none.
        """
        decoder = self.model.decoder
        hidden = after_attention(decoder.model.layers[-1], hidden, seen)
        logits = decoder.lm_head(decoder.model.norm(hidden))
        if banned is not None:
            column = banned.clamp(min=0)[:, None]
            logits.scatter_(1, column, logits.gather(1, column).masked_fill(banned[:, None] >= 0, -torch.inf))
        return self.layers.likeliest(logits)

    @torch.no_grad()
    def capture(self) -> None:
        """Captures all graphs, the largest first: the others share its memory."""
        encoder, width, dtype = self.model.encoder.config, self.model.decoder.config.hidden_size, self.model.decoder.dtype
        zeros = partial(torch.zeros, dtype=torch.int64, device=self.device)
        bounds, rows = zeros(MAX_PREFILL_ROWS + 1, dtype=torch.int32), zeros(MAX_PREFILL_ROWS)
        for size in reversed(PROMPT_SIZES):
            if self.model.trimmed:
                self.encode_packed(zeros(self.packing.frames_per_token * size, encoder.d_model, dtype=dtype), bounds)
            self.read_prompts(zeros(size, width, dtype=dtype), zeros(size), self._wasted(zeros(0), size), rows, bounds, rows)
        if not self.model.trimmed:
            for size in reversed(WINDOW_SIZES):
                self.encode_windows(zeros(size, encoder.max_source_positions, encoder.d_model, dtype=dtype))
        for size in sorted({min(size, self.cache.num_slots) for size in STEP_SIZES}, reverse=True):
            self.step(zeros(3, size) + len(self.head), zeros(size))

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return move(tensor.pin_memory(), self.device) if self.on_gpu else tensor

    def _read(self, tokens: torch.Tensor, rows: Sequence[int]) -> Tokens:
        """Starts to copy tokens (2, B) to the host; the returned function waits for the copy, and returns those of `rows`."""

        def known(ids: list[float], logprobs: list[float]) -> list[Token]:
            return [Token(int(ids[row]), logprobs[row]) for row in rows]

        if not self.on_gpu:
            return partial(known, *tokens.tolist())
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> list[Token]:
            copied.synchronize()
            return known(*host.tolist())

        return wait
