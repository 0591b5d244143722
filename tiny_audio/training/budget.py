"""How many seconds of audio a GPU can train at a time: found by trying, so that nobody has to guess."""

from __future__ import annotations

import numpy as np
import torch

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.data.batch import CLIP_S, load_s
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.packing import pack

CPU_BUDGET_S = 480.0
MAX_BUDGET_S = 1920.0  # larger products are no faster
PROBE_CLIPS = (2, 12)
PROBE_CLIP_S = 5.0
PROBE_TEXT = " ".join(["label"] * 16)  # speech has about three words a second, a few of them of more than one token
MEMORY_SHARE = 0.88  # of the GPU's memory; the rest is for fragments and what others hold
OPTIMIZER_BYTES_PER_WEIGHT = 24  # float32 gradient, moments, and the engine's own copies


def _peak_bytes(model: ASRModel, num_clips: int) -> tuple[float, int]:
    """Load in seconds of one forward and backward pass, and the most memory held meanwhile."""
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(int(PROBE_CLIP_S * SAMPLE_RATE)) * 1000).astype(np.int16)
    clips = [Clip(str(i), noise, PROBE_TEXT) for i in range(num_clips)]
    batch = pack(clips, model.packing()).to(model.decoder.device)
    torch.cuda.reset_peak_memory_stats()
    model(batch).loss.backward()
    model.zero_grad(set_to_none=True)
    return load_s(clips), torch.cuda.max_memory_allocated()


def find_micro_batch_s(model: ASRModel) -> float:
    """Seconds of audio (`batch.load_s`) that fit the model's device at a time; also compiles what is to be compiled.

    Peak memory grows by a line with the load; two small probes give it. Call it before an engine holds the model.
    """
    if model.decoder.device.type != "cuda":
        return CPU_BUDGET_S
    _peak_bytes(model, PROBE_CLIPS[0])  # compiles
    (small_s, small), (large_s, large) = (_peak_bytes(model, count) for count in PROBE_CLIPS)
    per_s = (large - small) / (large_s - small_s)
    device = torch.cuda.current_device()
    usable = torch.cuda.mem_get_info()[1] * torch.cuda.get_per_process_memory_fraction(device) * MEMORY_SHARE
    optimizer = OPTIMIZER_BYTES_PER_WEIGHT * sum(weight.numel() for weight in model.projector.parameters())
    budget_s = (usable - optimizer - (small - per_s * small_s)) / per_s
    budget_s -= model.window_num_samples / SAMPLE_RATE + CLIP_S  # parts are made of whole clips: one may stick out
    torch.cuda.empty_cache()
    return float(min(MAX_BUDGET_S, max(30.0, budget_s // 10 * 10)))
