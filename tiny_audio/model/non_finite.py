"""Leaves out clips that meet a NaN or an infinity, in the backbones or in the gradients, so that the others train on.

Clips lie end to end and never look at each other, so what is not finite stays within its clip until the projector's
weights sum their gradients over all clips. There it is stopped. All of this happens on the device, and nothing is read
back before the next logged step. Letters in shapes are those of `features.py`.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from tiny_audio.model.prompt import IGNORED_LABEL
from tiny_audio.model.segments import Segments


def _all_of_each(good: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Tells of each clip whether all of its positions are good: (N,) booleans and the (B + 1,) bounds -> (B,)."""
    bad = torch.cat([good.new_zeros(1, dtype=torch.long), (~good).cumsum(0)])
    return bad[bounds[1:]] == bad[bounds[:-1]]


def _spread(flags: torch.Tensor, bounds: torch.Tensor, length: int) -> torch.Tensor:
    """Repeats the flags of clips, (B,), for each of their positions: (length,)."""
    return flags.repeat_interleave((bounds[1:] - bounds[:-1]).long(), output_size=length)


class ClipCheck:
    """Keeps which clips of a packed batch are `finite`, (B,) on the device: true until a check finds otherwise.

    Args:
        first_tokens: (B,) each clip's first audio token.
        num_audio_tokens: the audio tokens of all clips together, A.
        labels: (L,) the labels of all clips.
        answers: where each clip's labels lie.
    """

    def __init__(self, first_tokens: torch.Tensor, num_audio_tokens: int, labels: torch.Tensor, answers: Segments):
        self.labels, self.answers, self.num_audio_tokens = labels, answers.bounds, num_audio_tokens
        self.tokens = pad(first_tokens, (0, 1), value=num_audio_tokens)
        self.finite = torch.ones_like(first_tokens, dtype=torch.bool)

    def check_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Returns encoder frames (k A, C) with zeros for what is not finite: a weight's gradient would be NaN * 0 there."""
        good = frames.isfinite()
        self.finite &= _all_of_each(good.all(1).unflatten(0, (self.num_audio_tokens, -1)).all(1), self.tokens)
        return torch.where(good, frames, 0)

    def check_gradients(self, audio: torch.Tensor) -> torch.Tensor:
        """Returns the audio tokens (A, D), whose gradients become zero for a clip that is not finite there, or was not before."""
        if audio.requires_grad:
            audio.register_hook(self._stop_gradients)
        return audio

    def _stop_gradients(self, gradients: torch.Tensor) -> torch.Tensor:
        self.finite &= _all_of_each(gradients.isfinite().all(1), self.tokens)
        return torch.where(_spread(self.finite, self.tokens, len(gradients))[:, None], gradients, 0)

    def check_losses(self, losses: torch.Tensor) -> torch.Tensor:
        """Returns the losses of the labels, (L,), with zeros for clips that are not finite."""
        self.finite &= _all_of_each(losses.isfinite(), self.answers)
        losses = torch.where(_spread(self.finite, self.answers, len(losses)), losses, 0)
        self.losses = losses.detach()
        return losses

    @property
    def loss_sum(self) -> torch.Tensor:
        """The loss of the clips that are finite, (); after a backward pass, of those that were finite in it too."""
        return torch.where(_spread(self.finite, self.answers, len(self.losses)), self.losses, 0).sum()

    @property
    def num_label_tokens(self) -> torch.Tensor:
        """The number of label tokens, (), of the clips that are finite."""
        return (_spread(self.finite, self.answers, len(self.labels)) & (self.labels != IGNORED_LABEL)).sum()
