"""What `ray_jobs.benchmark` measures: the parts, each run for itself. Speeds are ratios to what the same run measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import ray
import torch
from torch.profiler import ProfilerActivity, profile

from tiny_audio.config import BenchmarkConfig, output_path, require
from tiny_audio.lab.benchmarks.plan import PlanSize, plan_figures
from tiny_audio.lab.benchmarks.restart import restart
from tiny_audio.lab.benchmarks.runs import Inputs, fp8_learning, make_inputs, scale, seed_job
from tiny_audio.lab.benchmarks.seed_recipe import SeedRecipe
from tiny_audio.lab.benchmarks.soak import soak
from tiny_audio.lab.benchmarks.step import OurStep, StepSpeed, benchmark_clips, matmul_tflops, process_group, time_steps
from tiny_audio.lab.benchmarks.transcribe import measure as transcription
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.fp8 import freeze_to_fp8
from tiny_audio.model.layers import compiled_layers
from tiny_audio.training.budget import find_micro_batch_s

SEED_ROWS, OUR_ROWS = 32, 128  # of a step: the seed's own; enough to fill the GPU
MICRO_BATCH_S = 1500.0
MEMORIES_GIB = (24, 80)  # of common GPUs, beside this one's own
SHARDS_ROWS = {"seed_job": 1000, "scale": 4096, "restart": 1024}


KERNELS = {  # kernels by what they are named for
    "attention": ("flash", "fmha", "native_sdpa"),  # before the products: their names hold those of its building blocks
    "matrix products": ("gemm", "nvjet", "cutlass"),
    "convolutions": ("conv", "implicit"),
    "FFT of the log-mels": ("fft",),
    "fused elementwise (norms, rotations, activations)": ("triton",),
    "copies": ("Memcpy", "Memset", "copy"),
    "optimizer": ("multi_tensor", "adam"),
}


def _model(inputs: Inputs) -> ASRModel:
    config = ASRConfig(audio_model_id=inputs.encoder, text_model_id=inputs.decoder, dtype="bfloat16", encoder_window="trimmed")
    torch.manual_seed(0)
    return ASRModel(config).to("cuda")


def _beside(speeds: list[StepSpeed], matmul: float) -> list[dict]:
    """Each variant with its ratio to the first, the seed's, and to the rate of a large product."""
    base = speeds[0].samples_per_s
    return [{**asdict(s), "times_seed": s.samples_per_s / base, "matmul_share": s.tflops / matmul} for s in speeds]


def step_speeds(inputs: Inputs) -> list[dict]:
    """The seed's step, then ours: bf16 and FP8, trimmed and exact, and with known encoder frames."""
    model = _model(inputs)
    matmul = matmul_tflops()
    seed = SeedRecipe(model)
    speeds = [time_steps("the seed's recipe", model, SEED_ROWS, 6, seed)]
    seed.use_mask_kernel()
    speeds.append(time_steps("the seed's recipe, transformers' default attention", model, SEED_ROWS, 4, seed))
    seed.close()
    model.layers = compiled_layers()
    with process_group():
        ours = OurStep(model, MICRO_BATCH_S)
        speeds.append(time_steps("bf16, 32 rows", model, SEED_ROWS, 24, ours))
        for kind in ("bf16", "fp8"):
            if kind == "fp8":
                freeze_to_fp8(model)
            for window, name in (("trimmed", "25 tokens/s"), ("full", "exact encoder")):
                model.config.encoder_window = window
                speeds.append(time_steps(f"{kind}, {name}", model, OUR_ROWS, 8, ours))
            ours.cached = True
            speeds.append(time_steps(f"{kind}, exact encoder, frames kept", model, OUR_ROWS, 6, ours))
            ours.cached = False
    rows = _beside(speeds, matmul)
    return [*rows, {"name": "bf16 product of 8192 x 8192", "tflops": matmul, "tflops_after": matmul_tflops()}]


def memory_fit(inputs: Inputs) -> list[dict]:
    """The budgets that are found where a GPU has less memory, and the peak that training with them reaches."""
    rows = []
    total_gib = torch.cuda.mem_get_info()[1] / 2**30
    model = _model(inputs)
    model.layers = compiled_layers()
    budgets = {}
    for memory_gib in (*MEMORIES_GIB, total_gib):  # found before there is an engine, as a training worker does
        torch.cuda.set_per_process_memory_fraction(memory_gib / total_gib)
        budgets[memory_gib] = find_micro_batch_s(model)
    with process_group():
        ours = OurStep(model, MICRO_BATCH_S)
        for memory_gib, budget_s in budgets.items():
            ours.micro_batch_s = budget_s
            torch.cuda.set_per_process_memory_fraction(memory_gib / total_gib)
            speed = time_steps(f"{memory_gib:.0f} GiB", model, OUR_ROWS, 4, ours)
            rows.append({**asdict(speed), "micro_batch_s": budget_s})
    return rows


def profile_step(inputs: Inputs, output_dir: Path) -> list[dict]:
    """Where the time of one step goes: a trace for chrome://tracing or Perfetto, and the kernels by their share."""
    model = _model(inputs)
    model.layers = compiled_layers()
    with process_group():
        ours = OurStep(model, MICRO_BATCH_S)
        ready = [ours.prepare(benchmark_clips(OUR_ROWS, number)) for number in range(3)]
        for batch in ready[:2]:
            ours(batch)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            ours(ready[2])
            torch.cuda.synchronize()
    profiled.export_chrome_trace(str(output_dir / "trace.json.gz"))
    kernels = [event for event in profiled.key_averages() if event.self_device_time_total and not event.self_cpu_time_total]
    total = sum(kernel.self_device_time_total for kernel in kernels)
    groups: dict[str, float] = {}
    for kernel in kernels:
        group = next((name for name, words in KERNELS.items() if any(word in kernel.key for word in words)), "other")
        groups[group] = groups.get(group, 0.0) + kernel.self_device_time_total
    return [
        {"name": name, "ms": spent / 1e3, "share": spent / total} for name, spent in sorted(groups.items(), key=lambda g: -g[1])
    ]


def measure(config: BenchmarkConfig) -> list[dict]:
    """Runs one part; returns its rows.

    Raises:
        ConfigError: there are fewer GPUs here than it takes.
    """
    output_dir = output_path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if config.part == "plan":
        # in a process of its own, which imports what a driver does: its memory is measured
        return _through_ray(lambda cluster: ray.get(ray.remote(plan_figures).remote(PlanSize())))
    if config.part == "soak":
        shutil.rmtree(output_dir / "soak", ignore_errors=True)
        return _through_ray(lambda cluster: soak(cluster, output_dir / "soak", config.soak_minutes))
    if config.part == "transcribe":
        return transcription(config)
    num_gpus = torch.cuda.device_count()
    require(num_gpus > 0, f"part={config.part} measures GPUs, and there is none here; part=plan and part=soak need none")
    shutil.rmtree(output_dir / "runs", ignore_errors=True)  # or runs of the same names would go on from there
    inputs = make_inputs(output_dir / "inputs", SHARDS_ROWS.get(config.part, 0))
    torch.cuda.empty_cache()  # what made the weights; the runs' workers want the memory
    parts: dict[str, Callable[[], list[dict]]] = {
        "step": lambda: step_speeds(inputs),
        "memory": lambda: memory_fit(inputs),
        "profile": lambda: profile_step(inputs, output_dir),
        "seed_job": lambda: _through_ray(lambda cluster: seed_job(cluster, inputs, output_dir / "runs")),
        "scale": lambda: _through_ray(lambda cluster: scale(inputs, output_dir / "runs", num_gpus)),
        "restart": lambda: _through_ray(lambda cluster: restart(inputs, output_dir / "runs", num_gpus)),
        "fp8": lambda: _through_ray(lambda cluster: fp8_learning(cluster, output_dir / "runs")),
    }
    return parts[config.part]()


def _through_ray(runs: Callable) -> list[dict]:
    with local_cluster() as cluster:
        return runs(cluster)
