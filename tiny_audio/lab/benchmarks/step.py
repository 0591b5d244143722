"""The speed of a training step on one GPU: ours in its variants beside the seed's, over the same clips, in one run.

No Ray here: what is timed is the step from packed tensors in host memory to updated weights, under the same engine
that training uses. `ray_jobs.benchmark` runs it, and the runs through Ray.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from tiny_audio.audio.clip import SAMPLE_RATE, Clip, num_audio_tokens
from tiny_audio.config import OptimizerConfig
from tiny_audio.data.batch import deal, load_s, num_micro_batches
from tiny_audio.lab.benchmarks.seed_recipe import SeedRecipe
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.packing import PackedBatch, pack
from tiny_audio.model.prompt import label_ids
from tiny_audio.training.feature_cache import FeatureCache
from tiny_audio.training.zero import Engine

MEAN_S, SIGMA, SHORTEST_S, LONGEST_S = 8.7, 0.6, 0.5, 30.0  # lognormal, clipped: LoquaciousSet's mean is 8.4 to 9 s
LABEL_TOKENS_PER_S = 3.55  # SmolLM3's tokens of English read aloud: 31 for 8.7 s
WORD = " the"  # one token of the embedded tokenizer


def benchmark_clips(count: int, seed: int, longest_s: float = LONGEST_S) -> list[Clip]:
    """Noise of LoquaciousSet's durations, with labels of as many tokens as speech of that length has."""
    rng = np.random.default_rng(seed)
    durations = rng.lognormal(np.log(MEAN_S) - SIGMA**2 / 2, SIGMA, count).clip(SHORTEST_S, longest_s)
    noise = (rng.standard_normal(int(LONGEST_S * SAMPLE_RATE)) * 1000).astype(np.int16)
    texts = [WORD * max(1, round(duration * LABEL_TOKENS_PER_S) - 2) for duration in durations]
    return [
        Clip(f"{seed}-{i}", noise[: int(d * SAMPLE_RATE)], text) for i, (d, text) in enumerate(zip(durations, texts, strict=True))
    ]


def matmul_tflops(seconds: float = 1.5) -> float:
    """What a large bf16 product of random values reaches on this GPU, kept up for a while."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 0.0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        for _ in range(20):
            torch.mm(a, b)
        ended.record()
        ended.synchronize()
        rate = 20 * 2 * 8192**3 / (begun.elapsed_time(ended) / 1e3) / 1e12
    return rate


def needed_tflop(model: ASRModel, clips: list[Clip], encodes: bool) -> float:
    """Multiply-adds (twice) that training on these clips needs: no padding, no recomputing, frozen weights' gradients never.

    Encoder forward at its window, unless its frames are known; projector forward and for its weights; decoder forward
    and back to its inputs, the last layer and the logits at the label positions only.
    """
    encoder, decoder = model.encoder.config, model.decoder.config
    tokens = np.array([num_audio_tokens(len(clip.pcm)) for clip in clips], float)
    answers = np.array([len(ids) for ids in label_ids(model.tokenizer, model.prompt, [clip.text for clip in clips])], float)
    frames = 2 * tokens if model.trimmed else np.full(len(clips), float(encoder.max_source_positions))
    width = encoder.d_model
    encoder_layer = frames * (8 * width**2 + 4 * width * encoder.encoder_ffn_dim) + 4 * frames**2 * width
    stem = frames * (2 * 2 * 3 * encoder.num_mel_bins * width + 2 * 3 * width**2)
    projector = tokens * 2 * sum(weight.numel() for weight in model.projector.parameters()) * 2
    hidden, inner = decoder.hidden_size, decoder.intermediate_size
    head = hidden // decoder.num_attention_heads
    queried, kept = 2 * hidden * hidden, 2 * hidden * 2 * decoder.num_key_value_heads * head
    rest = queried + 6 * hidden * inner
    length = tokens + len(model.prompt.prefix) + len(model.prompt.suffix) + answers - 1
    decoder_layer = length * (queried + kept + rest) + 2 * length**2 * hidden
    last = length * kept + answers * (queried + rest) + 4 * answers * length * hidden
    logits = answers * 2 * hidden * decoder.vocab_size
    backward = 2  # as much again, towards the inputs
    total = encodes * (encoder.encoder_layers * encoder_layer + stem) + projector
    total += backward * ((decoder.num_hidden_layers - 1) * decoder_layer + last + logits)
    return float(total.sum()) / 1e12


@contextmanager
def process_group() -> Iterator[None]:
    """A process group of one, as a training worker's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():  # DeepSpeed reads them
        os.environ.setdefault(name, value)
    distributed.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@dataclass
class StepSpeed:
    """What one variant did."""

    name: str
    rows_per_step: int
    samples_per_s: float
    audio_s_per_s: float
    tflops: float  # of needed operations
    peak_gib: float
    first_step_s: float  # with compiling


def time_steps(name: str, model: ASRModel, rows: int, num_steps: int, step: SeedRecipe | OurStep) -> StepSpeed:
    """Runs `step` on `num_steps` batches of other clips each, after three to warm up."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step(step.prepare(benchmark_clips(rows, 10**6)))
    torch.cuda.synchronize()
    first_step_s = time.perf_counter() - started
    for number in range(2):
        step(step.prepare(benchmark_clips(rows, 10**6 + 1 + number)))
    batches = [benchmark_clips(rows, number) for number in range(num_steps)]
    ready = [step.prepare(clips) for clips in batches]
    torch.cuda.synchronize()
    started = time.perf_counter()
    for prepared in ready:
        step(prepared)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    clips = [clip for batch in batches for clip in batch]
    return StepSpeed(
        name=name,
        rows_per_step=rows,
        samples_per_s=len(clips) / seconds,
        audio_s_per_s=sum(clip.duration_s for clip in clips) / seconds,
        tflops=needed_tflop(model, clips, step.encodes) / seconds,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30,
        first_step_s=first_step_s,
    )


class OurStep:
    """A step as a training worker makes it; packing is left to the feed's thread there, and is done ahead here."""

    def __init__(self, model: ASRModel, micro_batch_s: float):
        self.model, self.micro_batch_s, self.cached = model, micro_batch_s, False
        self.engine = Engine(model, model.projector, OptimizerConfig(), stage=2)

    def prepare(self, clips: list[Clip]) -> list[PackedBatch]:
        parts = deal(clips, num_micro_batches(load_s(clips), self.micro_batch_s))
        return [pack(part, self.model.packing(), self._encoded(part)).pin() for part in parts]

    @property
    def encodes(self) -> bool:
        return not self.cached

    def _encoded(self, clips: list[Clip]) -> dict[int, torch.Tensor]:
        """What a feature cache would know of the clips, where there is one: all."""
        if not self.cached:
            return {}
        cache = FeatureCache(float("inf"))
        batch = pack(clips, self.model.packing())
        cache.keep(batch.fresh, self.model.encode_batch(batch.to(self.engine.device)), batch.num_frames)
        return {i: cache.find(clip) for i, clip in enumerate(clips)}

    def __call__(self, parts: list[PackedBatch]) -> None:
        scale = 1 / sum(part.num_label_tokens for part in parts)
        for number, part in enumerate(parts, 1):
            output = self.engine(part.to(self.engine.device))
            self.engine.backward(output.loss_sum * scale, last=number == len(parts))
        self.engine.step(3e-4)
