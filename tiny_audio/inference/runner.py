"""Computes for the engine: reads prompts into the cache's slots, and makes a token for each slot in use.

On a GPU the layers are compiled and run as CUDA graphs of a few sizes; elsewhere they run as plain torch. Row i of a decode
step is slot i, in use or not, so nothing is gathered when clips join and leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from transformers import PreTrainedModel

from tiny_audio.audio.clip import FRAMES_PER_TOKEN, Clip, num_audio_tokens
from tiny_audio.inference.cache import SlotCache
from tiny_audio.inference.engine import Tokens
from tiny_audio.inference.graphs import Graphed, next_size, padded
from tiny_audio.inference.scheduler import Request
from tiny_audio.model.layers import (
    Layers,
    after_attention,
    attend,
    attend_slots,
    before_attention_kept,
    compiled_layers,
    flash_attend_slots,
    join_projections,
)
from tiny_audio.model.packing import pack
from tiny_audio.model.segments import Segments, move

MAX_PREFILL_ROWS, MAX_PREFILL_TOKENS = 64, 8192  # limits of a prefill: about 0.1 s on an H100, while all running clips wait
MAX_SLOTS_GPU, MAX_SLOTS_CPU = 512, 32
CACHE_SHARE = 0.5  # largest share of the GPU's free memory

# Sizes that graphs are captured for, close enough to one another that padding costs little.
PROMPT_SIZES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 7168, 8192)  # tokens; twice as many frames
WINDOW_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)  # clips, each padded to the encoder's window
STEP_SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # slots; 1 would compile the layers again


def free_bytes(device: torch.device) -> int:
    """Returns the GPU memory that torch can still give, including what it keeps for reuse."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


class Runner:
    """Computes with an `ASRModel` and the slots of its cache.

    With `graphs`, the model keeps compiled layers, and joined projections.
    """

    def __init__(self, model: PreTrainedModel, max_new_tokens: int, max_slots: int | None = None, graphs: bool = False):
        self.model, self.packing, self.device = model, model.packing(), model.decoder.device
        config, attention, dtype = model.decoder.config, model.decoder.model.layers[0].self_attn, model.decoder.dtype
        self.on_gpu = self.device.type == "cuda"
        self.lookahead = int(self.on_gpu)
        self.flash = self.on_gpu and dtype != torch.float32
        self.layers = Layers()
        if graphs:
            join_projections(model.decoder.model)
            model.layers = self.layers = compiled_layers()
        length = self.prompt_tokens(model.window_num_samples) + max_new_tokens
        heads = (config.num_key_value_heads, attention.head_dim)
        slot_bytes = 2 * config.num_hidden_layers * length * heads[0] * heads[1] * dtype.itemsize
        if max_slots is None:
            max_slots = MAX_SLOTS_GPU if self.on_gpu else MAX_SLOTS_CPU
        if self.on_gpu:
            max_slots = max(2, min(max_slots, int(CACHE_SHARE * free_bytes(self.device) / slot_bytes)))
        self.cache = SlotCache(config.num_hidden_layers, max_slots, length, heads, dtype, self.device)
        self.ids = torch.zeros(max_slots, dtype=torch.int64, device=self.device)  # the newest token of each slot
        self.rows = torch.arange(max_slots + 1, dtype=torch.int32, device=self.device)
        self.bounds = self.rows * length  # bounds of the slots in the cache
        self.graphed = graphs
        functions = (self._encode_windows, self._encode_packed, self._read_prompts, self._step)
        if graphs:
            pool = torch.cuda.graph_pool_handle()
            functions = tuple(Graphed(function, pool) for function in functions)
        self.encode_windows, self.encode_packed, self.read_prompts, self.step = functions

    def prompt_tokens(self, num_samples: int) -> int:
        """Returns the number of positions that a clip's prompt takes, including its audio."""
        return len(self.packing.prompt.prefix) + num_audio_tokens(num_samples) + len(self.packing.prompt.suffix)

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
        first = np.repeat(slots * self.cache.length, np.diff(batch.clips.bounds.numpy()))
        where, slots = (self._moved(torch.from_numpy(x)) for x in (first + batch.positions.numpy(), slots))
        batch = (batch.pin() if self.on_gpu else batch).to(self.device)
        audio = self.model.project(self.model.encode_batch(batch, self._encode), batch.first_tokens)
        hidden = self.model.decoder.model.embed_tokens(batch.ids).index_copy(0, batch.audio, audio)
        positions, bounds, predicting = batch.positions, batch.clips.bounds, batch.predicting
        if self.graphed:
            num_tokens = next_size(len(hidden), PROMPT_SIZES)
            bounds = padded(bounds, MAX_PREFILL_ROWS + 1, len(hidden))
            hidden, positions, where = padded(hidden, num_tokens), padded(positions, num_tokens), self._wasted(where, num_tokens)
            predicting = padded(predicting, MAX_PREFILL_ROWS)
        ids = self.read_prompts(hidden, positions, where, bounds, predicting)[: len(requests)]
        self.ids.index_copy_(0, slots, ids)
        return self._read(ids, np.argsort(order))

    def _wasted(self, where: torch.Tensor, size: int) -> torch.Tensor:
        """Pads places in the cache, (N,) -> (size,), so that rows beyond N are written to no slot."""
        return padded(where, size, self.cache.waste)

    def _encode(self, hidden: torch.Tensor, frames: Segments | None) -> torch.Tensor:
        """Runs the encoder's layers on whole windows (B, E, C) or packed frames (N, C)."""
        if not self.graphed:
            return self.model.encoder_layers(hidden, frames)
        if frames is None:
            return self.encode_windows(padded(hidden, next_size(len(hidden), WINDOW_SIZES)))[: len(hidden)]
        num_frames = FRAMES_PER_TOKEN * next_size(-(-len(hidden) // FRAMES_PER_TOKEN), PROMPT_SIZES)
        return self.encode_packed(padded(hidden, num_frames), padded(frames.bounds, MAX_PREFILL_ROWS + 1, len(hidden)))[
            : len(hidden)
        ]

    def _encode_windows(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.encoder_layers(hidden, None)

    def _encode_packed(self, hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        return self.model.encoder_layers(hidden, Segments(bounds, self.model.encoder.config.max_source_positions))

    def _read_prompts(
        self, hidden: torch.Tensor, positions: torch.Tensor, where: torch.Tensor, bounds: torch.Tensor, predicting: torch.Tensor
    ) -> torch.Tensor:
        """Reads prompts (N, D), of clips as `bounds` say, into the cache; returns the first token of each, (B,)."""
        clips = Segments(bounds, self.cache.length)
        attended = partial(attend, queries=clips, keys=clips, causal=True)
        hidden, seen = self._layers(hidden, positions, where, lambda number, *heads: attended(*heads))
        return self._next_ids(hidden[predicting], seen[predicting])

    @torch.no_grad()
    def decode(self, requests: list[Request]) -> Tokens:
        """Makes the next token of each request."""
        rows = [request.slot for request in requests]
        num_rows = max(rows) + 1
        if self.graphed:
            num_rows = min(next_size(num_rows, STEP_SIZES), self.cache.num_slots)
        positions = torch.zeros(num_rows, dtype=torch.int64)
        positions[rows] = torch.tensor([request.position for request in requests])
        ids = self.step(self._moved(positions), self.ids[:num_rows])
        self.ids[:num_rows] = ids
        return self._read(ids, rows)

    def _step(self, positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Makes the next token of each of the first B slots, (B,), after `ids` at `positions`."""
        where, lengths = self.bounds[: len(ids)] + positions, (positions + 1).int()
        longest = self.cache.length if self.graphed or self.flash else int(lengths.max())
        hidden = self.model.decoder.model.embed_tokens(ids)
        attended = partial(self._attend_slots, lengths=lengths, longest=longest)
        return self._next_ids(*self._layers(hidden, positions, where, lambda number, query, *_: attended(number, query)))

    def _layers(self, hidden: torch.Tensor, positions: torch.Tensor, where: torch.Tensor, attended: Callable) -> tuple:
        """Runs all layers up to the last one's attention; returns that layer's input (N, D) and what its queries attended to.

        Args:
            positions: (N,) position of each row in its clip.
            where: (N,) place of each row in the cache.
            attended: maps a layer's number, queries, keys and values to what the queries see.
        """
        layers, turns = self.model.decoder.model.layers, self.model.rotations(hidden, positions)
        kept = [(*turn, *kv, where) for turn, kv in zip(turns, zip(self.cache.keys, self.cache.values, strict=True), strict=True)]
        heads = before_attention_kept(layers[0], hidden, *kept[0])
        for number, (layer, following) in enumerate(pairwise(layers)):
            seen = attended(number, *heads)
            hidden, *heads = self.layers.between_attentions(layer, following, hidden, seen, *kept[number + 1])
        return hidden, attended(len(layers) - 1, *heads)

    def _attend_slots(self, number: int, query: torch.Tensor, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """Attends from the newest tokens of the slots, (B, heads, d), to their keys in the layer of that number."""
        num_rows, length = len(query), self.cache.length
        keys, values = (x[number][: num_rows * length] for x in (self.cache.keys, self.cache.values))
        if self.flash:
            slots = Segments(self.bounds[: num_rows + 1], length)
            return flash_attend_slots(query, keys, values, lengths, Segments(self.rows[: num_rows + 1], 1), slots)
        keys, values = (x.unflatten(0, (num_rows, length))[:, :longest] for x in (keys, values))
        return attend_slots(query, keys, values, lengths)

    def _next_ids(self, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Finishes the last layer after its attention: (B, D) and (B, heads, d) -> the likeliest tokens, (B,)."""
        decoder = self.model.decoder
        hidden = after_attention(decoder.model.layers[-1], hidden, seen)
        return decoder.lm_head(decoder.model.norm(hidden)).argmax(dim=-1)

    @torch.no_grad()
    def capture(self) -> None:
        """Captures all graphs, the largest first: the others share its memory."""
        encoder, width, dtype = self.model.encoder.config, self.model.decoder.config.hidden_size, self.model.decoder.dtype
        zeros = partial(torch.zeros, dtype=torch.int64, device=self.device)
        bounds = zeros(MAX_PREFILL_ROWS + 1, dtype=torch.int32)
        for size in reversed(PROMPT_SIZES):
            if self.model.trimmed:
                self.encode_packed(zeros(FRAMES_PER_TOKEN * size, encoder.d_model, dtype=dtype), bounds)
            where = self._wasted(zeros(0), size)
            self.read_prompts(zeros(size, width, dtype=dtype), zeros(size), where, bounds, zeros(MAX_PREFILL_ROWS))
        if not self.model.trimmed:
            for size in reversed(WINDOW_SIZES):
                self.encode_windows(zeros(size, encoder.max_source_positions, encoder.d_model, dtype=dtype))
        for size in sorted({min(size, self.cache.num_slots) for size in STEP_SIZES}, reverse=True):
            self.step(zeros(size), zeros(size))

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return move(tensor.pin_memory(), self.device) if self.on_gpu else tensor

    def _read(self, ids: torch.Tensor, rows: Sequence[int]) -> Tokens:
        """Starts to copy the ids at `rows` to the host; the returned function waits for the copy."""
        if not self.on_gpu:
            known = ids.tolist()
            return lambda: [known[row] for row in rows]
        host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        host.copy_(ids, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> list[int]:
            copied.synchronize()
            known = host.tolist()
            return [known[row] for row in rows]

        return wait
