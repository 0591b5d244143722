"""How long LoquaciousSet's clips are, so that made ones take the time that real ones would."""

from __future__ import annotations

import numpy as np

MEAN_S, SIGMA, SHORTEST_S, LONGEST_S = 8.7, 0.6, 0.5, 30.0  # lognormal, clipped: LoquaciousSet's mean is 8.4 to 9 s


def draw_durations_s(
    num_clips: int, rng: np.random.Generator, mean_s: float = MEAN_S, longest_s: float = LONGEST_S
) -> np.ndarray:
    """Draws (num_clips,) durations in seconds, whose mean is `mean_s` before they are clipped."""
    return rng.lognormal(np.log(mean_s) - SIGMA**2 / 2, SIGMA, num_clips).clip(SHORTEST_S, longest_s)
