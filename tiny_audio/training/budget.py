"""How many seconds of audio a GPU can train at a time: measured, so that nobody has to guess."""

from __future__ import annotations

import numpy as np
import torch

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.data.batch import CLIP_S, load_s
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.packing import pack

CPU_BUDGET_S = 480.0  # used without a GPU
MIN_BUDGET_S = 30.0
MAX_BUDGET_S = 1920.0  # larger matrix products are no faster
PROBE_CLIPS = (2, 12)  # numbers of clips in the two probes
PROBE_CLIP_S = 5.0
PROBE_TEXT = " ".join(["label"] * 16)  # about three words per second, as in speech, some of more than one token
MEMORY_SHARE = 0.88  # usable share of the GPU's memory; the rest is for fragmentation and other users
OPTIMIZER_BYTES_PER_WEIGHT = 24  # float32 gradient and moments, and the engine's own copies


def _peak_bytes(model: ASRModel, num_clips: int) -> tuple[float, int]:
    """Runs one forward and backward pass; returns its load in seconds and its peak memory in bytes."""
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(int(PROBE_CLIP_S * SAMPLE_RATE)) * 1000).astype(np.int16)
    clips = [Clip(str(i), noise, PROBE_TEXT) for i in range(num_clips)]
    batch = pack(clips, model.packing()).to(model.decoder.device)
    torch.cuda.reset_peak_memory_stats()
    model(batch).loss.backward()
    model.zero_grad(set_to_none=True)
    return load_s(clips), torch.cuda.max_memory_allocated()


def find_micro_batch_s(model: ASRModel) -> float:
    """Measures how many seconds of audio (`batch.load_s`) fit the model's device at a time; compiles the layers on the way.

    Peak memory is linear in the load, so two small probes give the line. Call it before an engine holds the model.
    """
    if model.decoder.device.type != "cuda":
        return CPU_BUDGET_S
    _peak_bytes(model, PROBE_CLIPS[0])  # compiles
    (small_s, small_bytes), (large_s, large_bytes) = (_peak_bytes(model, num_clips) for num_clips in PROBE_CLIPS)
    bytes_per_s = (large_bytes - small_bytes) / (large_s - small_s)
    device = torch.cuda.current_device()
    usable_bytes = torch.cuda.mem_get_info()[1] * torch.cuda.get_per_process_memory_fraction(device) * MEMORY_SHARE
    optimizer_bytes = OPTIMIZER_BYTES_PER_WEIGHT * sum(weight.numel() for weight in model.trained_weights().values())
    budget_s = (usable_bytes - optimizer_bytes - (small_bytes - bytes_per_s * small_s)) / bytes_per_s
    budget_s -= model.window_num_samples / SAMPLE_RATE + CLIP_S  # a micro-batch of whole clips may exceed it by one
    torch.cuda.empty_cache()
    return float(min(MAX_BUDGET_S, max(MIN_BUDGET_S, budget_s // 10 * 10)))
