"""What the engine computes: prompts into the cache's slots, and a token for each slot in use.

On a GPU the layers are compiled, and a decode step is one CUDA graph for each of a few numbers of slots; elsewhere both
run as plain torch. Row i of a decode step is slot i, in use or not, so nothing is gathered when clips join and leave.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from tiny_audio.audio.clip import Clip, num_audio_tokens
from tiny_audio.inference.cache import SlotCache
from tiny_audio.inference.engine import Tokens
from tiny_audio.inference.scheduler import Request
from tiny_audio.model.asr import ASRModel
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

# Slots that a graph computes; one that has 1.5 times the slots in use at most is near. Never 1: compiled layers would be
# compiled again for it.
GRAPH_SLOTS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MAX_SLOTS_GPU, MAX_SLOTS_CPU = 512, 32
CACHE_SHARE = 0.5  # of the GPU's free memory, at most


def free_bytes(device: torch.device) -> int:
    """GPU memory that torch can give, what it keeps for reuse with it."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


class Runner:
    """An `ASRModel` and the slots of its cache."""

    def __init__(self, model: ASRModel, max_new_tokens: int, max_slots: int | None = None, graphs: bool = False):
        self.model, self.packing, self.device = model, model.packing(), model.decoder.device
        config, attention = model.decoder.config, model.decoder.model.layers[0].self_attn
        dtype = model.decoder.dtype
        self.flash = self.device.type == "cuda" and dtype != torch.float32
        self.lookahead = int(self.device.type == "cuda")
        length = self.prompt_tokens(model.window_num_samples) + max_new_tokens
        slot_bytes = 2 * config.num_hidden_layers * length * config.num_key_value_heads * attention.head_dim * dtype.itemsize
        if max_slots is None:
            max_slots = MAX_SLOTS_GPU if self.lookahead else MAX_SLOTS_CPU
        if self.lookahead:
            max_slots = max(2, min(max_slots, int(CACHE_SHARE * free_bytes(self.device) / slot_bytes)))
        heads = (config.num_key_value_heads, attention.head_dim)
        self.cache = SlotCache(config.num_hidden_layers, max_slots, length, heads, dtype, self.device)
        self.ids = torch.zeros(max_slots, dtype=torch.int64, device=self.device)  # the newest token of each slot
        self.positions = torch.zeros_like(self.ids)  # and its position
        self.rows = torch.arange(max_slots + 1, dtype=torch.int32, device=self.device)
        self.bounds = self.rows * length  # of each slot, where the cache is flat
        self.layers = compiled_layers() if graphs else Layers()
        if graphs:
            join_projections(model.decoder.model)
        self.graphs: dict[int, torch.cuda.CUDAGraph] | None = {} if graphs else None

    def prompt_tokens(self, num_samples: int) -> int:
        """Positions that a clip's prompt takes, its audio with it."""
        return len(self.packing.prompt.prefix) + num_audio_tokens(num_samples) + len(self.packing.prompt.suffix)

    def join(self, requests: list[Request]) -> None:
        for request in requests:
            request.slot = self.cache.take()

    def leave(self, request: Request) -> None:
        self.cache.give_back(request.slot)

    @torch.no_grad()
    def prefill(self, requests: list[Request]) -> Tokens:
        """Encodes clips, reads their prompts into their slots, and makes each one's first token."""
        clips = [Clip(str(number), request.pcm, "") for number, request in enumerate(requests)]
        batch = pack(clips, self.packing, unanswered=True)
        order = [int(clip.id) for clip in batch.rows]
        slots = np.array([requests[number].slot for number in order])
        first = np.repeat(slots * self.cache.length, np.diff(batch.clips.bounds.numpy()))
        where, slots = (self._moved(torch.from_numpy(x)) for x in (first + batch.positions.numpy(), slots))
        batch = (batch.pin() if self.lookahead else batch).to(self.device)
        audio = self.model.project(self.model.encode_batch(batch), batch.first_tokens)
        decoder = self.model.decoder.model
        hidden = decoder.embed_tokens(batch.ids).index_copy(0, batch.audio, audio)
        attended = partial(attend, queries=batch.clips, keys=batch.clips, causal=True)
        hidden, seen = self._layers(hidden, batch.positions, where, lambda number, *x: attended(*x))
        hidden = after_attention(decoder.layers[-1], hidden[batch.predicting], seen[batch.predicting])
        ids = self._next_ids(hidden)
        self.ids.index_copy_(0, slots, ids)
        return self._read(ids, np.argsort(order))

    @torch.no_grad()
    def decode(self, requests: list[Request]) -> Tokens:
        """Makes the next token of each request."""
        rows = [request.slot for request in requests]
        positions = torch.zeros(self._num_rows(max(rows) + 1), dtype=torch.int64)
        positions[rows] = torch.tensor([request.position for request in requests])
        self.positions[: len(positions)].copy_(self._moved(positions))
        if self.graphs is None:
            self._step(len(positions), int(positions.max()) + 1)
        else:
            self._graph(len(positions)).replay()
        return self._read(self.ids[: len(positions)], rows)

    def _num_rows(self, count: int) -> int:
        """How many slots a step computes where the first `count` are in use."""
        if self.graphs is None:
            return count
        return min([*GRAPH_SLOTS, self.cache.num_slots][bisect_left(GRAPH_SLOTS, count)], self.cache.num_slots)

    def _step(self, num_rows: int, longest: int) -> None:
        """A decode step over the first `num_rows` slots, none of which is longer than `longest`."""
        decoder, positions = self.model.decoder.model, self.positions[:num_rows]
        where, lengths = self.bounds[:num_rows] + positions, (positions + 1).int()
        hidden = decoder.embed_tokens(self.ids[:num_rows])
        attended = partial(self._attend_slots, lengths=lengths, longest=longest)
        hidden, seen = self._layers(hidden, positions, where, lambda number, query, *_: attended(number, query))
        self.ids[:num_rows] = self._next_ids(after_attention(decoder.layers[-1], hidden, seen))

    def _layers(self, hidden: torch.Tensor, positions: torch.Tensor, where: torch.Tensor, attended: Callable) -> tuple:
        """All layers up to the last one's attention: what goes into that layer (N, D), and what its queries saw.

        Args:
            positions: (N,) of each row in its clip, and `where` they are in the cache.
            attended: of a layer's number, queries, keys and values, what the queries see.
        """
        layers, turns = self.model.decoder.model.layers, self.model.rotations(hidden, positions)
        kept = [(*turn, *kv, where) for turn, kv in zip(turns, zip(self.cache.keys, self.cache.values, strict=True), strict=True)]
        heads = before_attention_kept(layers[0], hidden, *kept[0])
        for number, (layer, following) in enumerate(pairwise(layers)):
            seen = attended(number, *heads)
            hidden, *heads = self.layers.between_attentions(layer, following, hidden, seen, *kept[number + 1])
        return hidden, attended(len(layers) - 1, *heads)

    def _attend_slots(self, number: int, query: torch.Tensor, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """Attention of slots' newest tokens (B, heads, d) in the layer of that number."""
        num_rows, length = len(query), self.cache.length
        keys, values = (x[number][: num_rows * length] for x in (self.cache.keys, self.cache.values))
        if self.flash:
            slots = Segments(self.bounds[: num_rows + 1], length)
            return flash_attend_slots(query, keys, values, lengths, Segments(self.rows[: num_rows + 1], 1), slots)
        keys, values = (x.unflatten(0, (num_rows, length))[:, :longest] for x in (keys, values))
        return attend_slots(query, keys, values, lengths)

    def _next_ids(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, D) of the decoder's last layer -> (N,) likeliest tokens."""
        return self.model.decoder.lm_head(self.model.decoder.model.norm(hidden)).argmax(dim=-1)

    def _graph(self, num_rows: int) -> torch.cuda.CUDAGraph:
        """The decode step over so many slots, captured at its first use."""
        if num_rows not in self.graphs:
            ids = self.ids.clone()
            for _ in range(2):  # what is compiled or set up at first use cannot be captured
                self._step(num_rows, self.cache.length)
            self.ids.copy_(ids)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self.graphs.values())).pool() if self.graphs else None
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._step(num_rows, self.cache.length)
            self.graphs[num_rows] = graph
        return self.graphs[num_rows]

    @torch.no_grad()
    def capture(self) -> None:
        """All graphs, the largest first, whose memory the others share."""
        for num_rows in sorted({self._num_rows(count) for count in GRAPH_SLOTS}, reverse=True):
            self._graph(num_rows)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return move(tensor.pin_memory(), self.device) if self.lookahead else tensor

    def _read(self, ids: torch.Tensor, rows: Sequence[int]) -> Tokens:
        """The ids at `rows`, which wait for the device when they are called for."""
        if not self.lookahead:
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
