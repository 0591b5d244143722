"""What a forward pass gives: a loss that can be summed over workers and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tiny_audio.model.non_finite import ClipCheck


@dataclass
class ASROutput:
    """Holds the loss of a batch, summed over its label tokens, and their number; `loss` is the mean.

    A model that trains with CTC adds it to `loss_sum`; `clips.loss_sum` is the decoder's alone.

    A clip that meets a NaN or an infinity is left out of the loss and of the gradients: see `non_finite.py`.
    """

    loss_sum: torch.Tensor
    num_label_tokens: int
    clips: ClipCheck  # says which clips were finite, and how many label tokens those have
    encoded: torch.Tensor | None  # (frames, C) that the encoder made; None where all were known

    @property
    def loss(self) -> torch.Tensor:
        return self.loss_sum / max(1, self.num_label_tokens)
