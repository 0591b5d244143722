"""The speed of a training step on one GPU: ours in its variants beside the seed's, over the same clips."""

from __future__ import annotations

from dataclasses import asdict

from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import gpu_facts, make_inputs
from tiny_audio.lab.benchmarks.runs import ROWS_PER_GPU
from tiny_audio.lab.benchmarks.seed_recipe import SeedRecipe
from tiny_audio.lab.benchmarks.step_speed import StepSpeed, TrainingStep, matmul_tflops, process_group, time_steps
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.fp8 import freeze_to_fp8
from tiny_audio.model.layers import compiled_layers
from tiny_audio.training.budget import find_micro_batch_s

SEED_ROWS = 32  # of the seed's step: 4 micro-batches of 8
WINDOWS = {"trimmed": "25 tokens/s", "full": "exact encoder"}


def measure(config: BenchmarkConfig) -> list[dict]:
    """Times the seed's step, then ours; gives each its ratio to the seed's, and to the rate of a large product here."""
    model = make_inputs(config).model()
    matmul = matmul_tflops()
    speeds = _seed_speeds(model) + _our_speeds(model)
    seed_rate = speeds[0].samples_per_s
    rows = [{**asdict(s), "times_seed": s.samples_per_s / seed_rate, "matmul_share": s.tflops / matmul} for s in speeds]
    rows.append({"name": "bf16 product of 8192 x 8192", "tflops": matmul, "tflops_after": matmul_tflops()})
    return [row | gpu_facts() for row in rows]


def _seed_speeds(model: ASRModel) -> list[StepSpeed]:
    seed = SeedRecipe(model)
    speeds = [time_steps("the seed's recipe", model, SEED_ROWS, 6, seed)]
    seed.use_mask_kernel()
    speeds.append(time_steps("the seed's recipe, transformers' default attention", model, SEED_ROWS, 4, seed))
    seed.close()
    return speeds


def _our_speeds(model: ASRModel) -> list[StepSpeed]:
    """Times our step in bfloat16 and in FP8, with the encoder's window trimmed and whole, and with kept encoder frames."""
    model.layers = compiled_layers(model.family)
    budgets_s = {window: _budget_s(model, window) for window in WINDOWS}  # for bfloat16; FP8's weights take less
    model.config.encoder_window = "trimmed"
    with process_group():
        step = TrainingStep(model, budgets_s["trimmed"])
        speeds = [time_steps("bf16, 32 rows", model, SEED_ROWS, 24, step)]
        for dtype in ("bf16", "fp8"):
            if dtype == "fp8":
                freeze_to_fp8(model)
            for window, name in WINDOWS.items():
                model.config.encoder_window, step.micro_batch_s = window, budgets_s[window]
                speeds.append(time_steps(f"{dtype}, {name}", model, ROWS_PER_GPU, 8, step))
            step.keeps_frames = True
            speeds.append(time_steps(f"{dtype}, exact encoder, frames kept", model, ROWS_PER_GPU, 6, step))
            step.keeps_frames = False
    return speeds


def _budget_s(model: ASRModel, window: str) -> float:
    model.config.encoder_window = window
    return find_micro_batch_s(model)
