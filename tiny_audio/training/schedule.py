"""The learning rate of every step: a function of the step number alone, so a resumed run needs no state for it."""

from __future__ import annotations

import math

from tiny_audio.config import OptimizerConfig


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Returns the rate of step `step` (from 0): a linear warm-up, then half a cosine down to zero or a constant rate."""
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    progress = (step - optimizer.warmup_steps) / max(1, num_steps - optimizer.warmup_steps)
    return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
