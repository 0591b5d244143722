"""The micro-batch budgets that are found on GPUs with less memory, and the peak memory of a training with each."""

from __future__ import annotations

from dataclasses import asdict

import torch

from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import gpu_facts, make_inputs
from tiny_audio.lab.benchmarks.runs import ROWS_PER_GPU
from tiny_audio.lab.benchmarks.step_speed import TrainingStep, process_group, time_steps
from tiny_audio.model.layers import compiled_layers
from tiny_audio.training.budget import find_micro_batch_s

MEMORIES_GIB = (24, 80)  # of common GPUs; those above this GPU's own are left out


def measure(config: BenchmarkConfig) -> list[dict]:
    """Finds the budget under every memory limit, then trains under it."""
    model = make_inputs(config).model()
    model.layers = compiled_layers(model.family)
    gpu_gib = gpu_facts()["gpu_memory_gib"]
    budgets_s = {}
    for memory_gib in (*(size for size in MEMORIES_GIB if size < gpu_gib), gpu_gib):
        torch.cuda.set_per_process_memory_fraction(memory_gib / gpu_gib)
        budgets_s[memory_gib] = find_micro_batch_s(model)  # before there is an engine, as in a training worker
    rows = []
    with process_group():
        step = TrainingStep(model, min(budgets_s.values()))
        for memory_gib, budget_s in budgets_s.items():
            step.micro_batch_s = budget_s
            torch.cuda.set_per_process_memory_fraction(memory_gib / gpu_gib)
            rows.append(asdict(time_steps(f"{memory_gib:.0f} GiB", model, ROWS_PER_GPU, 4, step)) | gpu_facts())
    return rows
