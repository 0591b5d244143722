"""The learning rate of every step: a function of the step number alone, so a resumed run needs no state for it."""

from __future__ import annotations

import math

from tiny_audio.config import OptimizerConfig, TrainConfig


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int, highest: float | None = None) -> float:
    """Returns the rate of step `step` (from 0): a linear warm-up, then half a cosine down to zero or a constant rate.

    `highest` is the rate at the end of the warm-up where it is not the optimizer's own.
    """
    highest = optimizer.learning_rate if highest is None else highest
    if step < optimizer.warmup_steps:
        return highest * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return highest
    progress = (step - optimizer.warmup_steps) / max(1, num_steps - optimizer.warmup_steps)
    return highest * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rates(config: TrainConfig, step: int) -> list[float]:
    """Returns the rates of step `step`: the projector's, and the adapter's if the run trains one."""
    highest = [config.optimizer.learning_rate, *([config.lora.learning_rate] if config.lora.rank else [])]
    return [learning_rate(config.optimizer, step, config.num_steps, rate) for rate in highest]
