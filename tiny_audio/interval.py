"""What a worker adds up between two logged steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed


@dataclass
class Interval:
    """What a worker saw since the last logged step. Sums over the workers are what is logged."""

    loss_sum: torch.Tensor
    num_tokens: float = 0.0
    audio_s: float = 0.0
    wait_s: float = 0.0
    num_rows: int = 0  # of all workers

    def sums(self, stops: bool) -> list[float]:
        """Over all workers: loss, tokens, audio seconds, seconds of waiting, how many `stops`. All workers must call it."""
        values = [self.num_tokens, self.audio_s, self.wait_s, stops]
        rest = torch.tensor(values, dtype=torch.float64, device=self.loss_sum.device)
        total = torch.cat([self.loss_sum.double().reshape(1), rest])
        distributed.all_reduce(total)
        return total.tolist()
