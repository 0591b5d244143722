"""Clips that meet a NaN or an infinity, in the backbones or in the gradients, are left out: nobody else is the worse for it.

Clips lie end to end and never look at each other, so what is not finite stays within its clip until the projector's
weights sum their gradients over all clips. There it is stopped. All is done on the device, which is not asked before
the next logged step. Letters in shapes are those of `features.py`.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from tiny_audio.model.prompt import IGNORED_LABEL
from tiny_audio.model.segments import Segments


def _all_of_each(good: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """(N,) booleans, (B + 1,) where each clip begins -> (B,) whether a clip has none but good ones."""
    bad = torch.cat([good.new_zeros(1, dtype=torch.long), (~good).cumsum(0)])
    return bad[bounds[1:]] == bad[bounds[:-1]]


def _spread(flags: torch.Tensor, bounds: torch.Tensor, length: int) -> torch.Tensor:
    """(B,) of clips -> (length,) of their positions."""
    return flags.repeat_interleave((bounds[1:] - bounds[:-1]).long(), output_size=length)


class ClipCheck:
    """Which clips of a packed batch are `finite`, (B,) on the device: true until a check finds otherwise.

    Args:
        first_tokens: (B,) each clip's first audio token.
        num_audio_tokens: of all clips together, A.
        labels: (L,) of all clips.
        answers: where each clip's labels lie.
    """

    def __init__(self, first_tokens: torch.Tensor, num_audio_tokens: int, labels: torch.Tensor, answers: Segments):
        self.labels, self.answers = labels, answers.bounds
        self.tokens = pad(first_tokens, (0, 1), value=num_audio_tokens)
        self.finite = torch.ones_like(first_tokens, dtype=torch.bool)

    def check_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Encoder frames (2 A, C) with zeros for what is not finite: a weight's gradient would be NaN * 0 there."""
        good = frames.isfinite()
        self.finite &= _all_of_each(good.all(1).unflatten(0, (-1, 2)).all(1), self.tokens)
        return torch.where(good, frames, 0)

    def check_gradients(self, audio: torch.Tensor) -> torch.Tensor:
        """The audio tokens (A, D), whose gradients will be zero for a clip that was not finite before, or is not there."""
        if audio.requires_grad:
            audio.register_hook(self._stop_gradients)
        return audio

    def _stop_gradients(self, gradients: torch.Tensor) -> torch.Tensor:
        self.finite &= _all_of_each(gradients.isfinite().all(1), self.tokens)
        return torch.where(_spread(self.finite, self.tokens, len(gradients))[:, None], gradients, 0)

    def check_losses(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses of the labels (L,), zero for clips that are not finite."""
        self.finite &= _all_of_each(losses.isfinite(), self.answers)
        losses = torch.where(_spread(self.finite, self.answers, len(losses)), losses, 0)
        self.losses = losses.detach()
        return losses

    @property
    def loss_sum(self) -> torch.Tensor:
        """() of the clips that are finite: after a backward pass, in it too."""
        return torch.where(_spread(self.finite, self.answers, len(self.losses)), self.losses, 0).sum()

    @property
    def num_label_tokens(self) -> torch.Tensor:
        """() label tokens of the clips that are finite."""
        return (_spread(self.finite, self.answers, len(self.labels)) & (self.labels != IGNORED_LABEL)).sum()
