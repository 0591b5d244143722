"""The projector, the only part that trains, turns encoder frames into the decoder's audio tokens."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from tiny_audio.audio.clip import FRAMES_PER_TOKEN

INIT_STD = 0.02  # the seed's, for every projector weight


class PairConv(nn.Conv1d):
    """Convolves packed clips, each an even number of frames long, with width 3 and stride 2."""

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns frames (2 A, C) into outputs (A, C): output t is made of frames 2t - 1, 2t and 2t + 1 of its clip.

        Args:
            frames: the clips, end to end.
            first: (B,) each clip's first output.
        """
        pairs = frames.unflatten(0, (-1, FRAMES_PER_TOKEN))
        before = pairs[:, 1].roll(1, 0).index_fill(0, first, 0.0)  # a clip begins after silence
        taps = torch.stack([before, pairs[:, 0], pairs[:, 1]], dim=-1)
        return linear(taps.flatten(1), self.weight.flatten(1))


class Projector(nn.Module):
    """The seed's `mlp`, with 11,730,944 parameters between whisper-large-v3-turbo (C 1280) and SmolLM3-3B (D 2048)."""

    def __init__(self, encoder_width: int, decoder_width: int):
        super().__init__()
        self.conv = PairConv(
            encoder_width, encoder_width, kernel_size=3, stride=FRAMES_PER_TOKEN, padding=1, bias=False, dtype=torch.float32
        )
        self.linear_1 = nn.Linear(encoder_width, decoder_width, bias=False, dtype=torch.float32)
        self.linear_2 = nn.Linear(decoder_width, decoder_width, bias=False, dtype=torch.float32)
        for weight in self.parameters():
            nn.init.normal_(weight, std=INIT_STD)

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns packed encoder frames (2 A, C) into audio tokens (A, D); `first` (B,) is each clip's first token."""
        return self.linear_2(gelu(self.linear_1(self.conv(frames, first))))
