"""Times training steps on one GPU, without Ray: from packed tensors in host memory to updated weights."""

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

from tiny_audio.audio.clip import Clip, num_audio_tokens
from tiny_audio.config import OptimizerConfig
from tiny_audio.data.batch import deal, load_s, num_micro_batches
from tiny_audio.lab.benchmarks.noise import noise_clips
from tiny_audio.lab.benchmarks.seed_recipe import SeedRecipe
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.flops import FlopCounter
from tiny_audio.model.packing import PackedBatch, pack
from tiny_audio.model.prompt import label_ids
from tiny_audio.training.feature_cache import FeatureCache
from tiny_audio.training.zero import Engine

WARMUP_SEED = 10**6  # apart from the seeds of the clips that are timed


def matmul_tflops(seconds: float = 1.5) -> float:
    """Returns the rate of a large bf16 product of random values on this GPU, kept up for a while."""
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
    """Returns the operations that training on these clips needs, in units of 10**12, as `FlopCounter` counts them."""
    num_tokens = np.array([num_audio_tokens(len(clip.pcm), model.frames_per_token) for clip in clips])
    num_labels = np.array([len(ids) for ids in label_ids(model.tokenizer, model.prompt, [clip.text for clip in clips])])
    return FlopCounter(model)(num_tokens, num_labels, np.full(len(clips), encodes)) / 1e12


@contextmanager
def process_group() -> Iterator[None]:
    """Sets up a process group of one, as a lone training worker has it."""
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
    """The speed and the memory of one variant of the step."""

    name: str
    rows_per_step: int
    samples_per_s: float
    audio_s_per_s: float
    tflops: float  # of needed operations
    peak_gib: float
    first_step_s: float  # compiles what no earlier step has compiled
    micro_batch_s: float  # the budget of a micro-batch


def time_steps(name: str, model: ASRModel, rows: int, num_steps: int, step: SeedRecipe | TrainingStep) -> StepSpeed:
    """Runs `step` on `num_steps` batches of different clips, after three to warm up."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step(step.prepare(noise_clips(rows, WARMUP_SEED)))
    torch.cuda.synchronize()
    first_step_s = time.perf_counter() - started
    for number in range(2):
        step(step.prepare(noise_clips(rows, WARMUP_SEED + 1 + number)))
    batches = [noise_clips(rows, number) for number in range(num_steps)]
    prepared = [step.prepare(clips) for clips in batches]
    torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in prepared:
        step(batch)
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
        micro_batch_s=step.micro_batch_s,
    )


class TrainingStep:
    """A step as a training worker makes it. The feed's thread packs batches there; here they are packed ahead."""

    def __init__(self, model: ASRModel, micro_batch_s: float):
        self.model, self.micro_batch_s = model, micro_batch_s
        self.keeps_frames = False  # as a feature cache that knows every clip
        self.engine = Engine(model, model.trained_groups(), OptimizerConfig(), stage=2)

    def prepare(self, clips: list[Clip]) -> list[PackedBatch]:
        """Deals the clips to micro-batches within the budget, and packs these."""
        parts = deal(clips, num_micro_batches(load_s(clips), self.micro_batch_s))
        return [pack(part, self.model.packing(), self._frames(part)).pin() for part in parts]

    @property
    def encodes(self) -> bool:
        """Whether the encoder runs in the step."""
        return not self.keeps_frames

    def _frames(self, clips: list[Clip]) -> dict[int, torch.Tensor]:
        """Returns the encoder frames of the clips by their index; none unless they are kept."""
        if not self.keeps_frames:
            return {}
        cache = FeatureCache(float("inf"))
        batch = pack(clips, self.model.packing())
        cache.keep(batch.fresh, self.model.encode_batch(batch.to(self.engine.device)), batch.num_frames)
        return {i: cache.find(clip) for i, clip in enumerate(clips)}

    def __call__(self, parts: list[PackedBatch]) -> None:
        """Trains one step on micro-batches that `prepare` made."""
        scale = 1 / sum(part.num_label_tokens for part in parts)
        for number, part in enumerate(parts, 1):
            output = self.engine(part.to(self.engine.device))
            self.engine.backward(output.loss_sum * scale, last=number == len(parts))
        self.engine.step([3e-4])
