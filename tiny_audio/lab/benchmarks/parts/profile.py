"""Where the time of one training step on one GPU goes: a trace, and the kernels by their share."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import gpu_facts, make_inputs
from tiny_audio.lab.benchmarks.noise import noise_clips
from tiny_audio.lab.benchmarks.runs import ROWS_PER_GPU
from tiny_audio.lab.benchmarks.step_speed import TrainingStep, process_group
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.layers import compiled_layers
from tiny_audio.training.budget import find_micro_batch_s

KERNELS = {  # groups of kernels, and what their names contain
    "attention": ("flash", "fmha", "native_sdpa"),  # before the products: attention kernels have "gemm" in their names too
    "matrix products": ("gemm", "nvjet", "cutlass"),
    "convolutions": ("conv", "implicit"),
    "FFT of the log-mels": ("fft",),
    "fused elementwise (norms, rotations, activations)": ("triton",),
    "copies": ("Memcpy", "Memset", "copy"),
    "optimizer": ("multi_tensor", "adam"),
}


def measure(config: BenchmarkConfig) -> list[dict]:
    """Profiles a step after two to warm up; writes trace.json.gz for chrome://tracing or Perfetto."""
    profiled = _profiled_step(make_inputs(config).model())
    profiled.export_chrome_trace(str(config.output_folder / "trace.json.gz"))
    kernels = [event for event in profiled.key_averages() if event.self_device_time_total and not event.self_cpu_time_total]
    total_us = sum(kernel.self_device_time_total for kernel in kernels)
    groups_us: dict[str, float] = {}
    for kernel in kernels:
        group = next((name for name, words in KERNELS.items() if any(word in kernel.key for word in words)), "other")
        groups_us[group] = groups_us.get(group, 0.0) + kernel.self_device_time_total
    longest_first = sorted(groups_us.items(), key=lambda group: -group[1])
    return [{"name": name, "ms": time_us / 1e3, "share": time_us / total_us} | gpu_facts() for name, time_us in longest_first]


def _profiled_step(model: ASRModel) -> profile:
    model.layers = compiled_layers(model.family)
    budget_s = find_micro_batch_s(model)
    with process_group():
        step = TrainingStep(model, budget_s)
        *warm_up, last = [step.prepare(noise_clips(ROWS_PER_GPU, number)) for number in range(3)]
        for batch in warm_up:
            step(batch)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            step(last)
            torch.cuda.synchronize()
    return profiled
