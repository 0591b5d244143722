"""The projectors, of which a model has one: the only part that trains, it turns encoder frames into the decoder's audio tokens.

Each kind is a class with a name in `PROJECTORS`, and owns the number of encoder frames that it makes a token of, k. Clips
come end to end, each in whole tokens. The weights are float32, whatever the backbones are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, linear, pad, rms_norm, silu

from tiny_audio.config import require
from tiny_audio.model.config import ASRConfig

INIT_STD = 0.02  # the seed's, for every matrix
STACKED_FRAMES = 4  # k where the config says none: 12.5 tokens a second
NUM_EXPERTS = 4
NUM_CONV_BLOCKS = 2
CONV_TAPS = 7  # tokens that a block sees: three to each side, 0.24 s at 12.5 tokens a second


def _matrix(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False, dtype=torch.float32)


def _draw_weights(projector: nn.Module) -> None:
    """Draws the first weights, but for norms, which begin with ones."""
    for weight in projector.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=INIT_STD)


class PairConv(nn.Conv1d):
    """Convolves packed clips, each an even number of frames long, with width 3 and stride 2."""

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns frames (2 A, C) into outputs (A, C): output t is made of frames 2t - 1, 2t and 2t + 1 of its clip.

        Args:
            frames: the clips, end to end.
            first: (B,) each clip's first output.
        """
        pairs = frames.unflatten(0, (-1, 2))
        before = pairs[:, 1].roll(1, 0).index_fill(0, first, 0.0)  # a clip begins after silence
        taps = torch.stack([before, pairs[:, 0], pairs[:, 1]], dim=-1)
        return linear(taps.flatten(1), self.weight.flatten(1))


class MLPProjector(nn.Module):
    """The seed's `mlp`, with 11,730,944 parameters between whisper-large-v3-turbo (C 1280) and SmolLM3-3B (D 2048)."""

    def __init__(self, encoder_width: int, decoder_width: int, frames_per_token: int | None = None):
        remedy = "take stack, swiglu, moe or conv, or leave frames_per_token out"
        require(frames_per_token in (None, 2), f"projector_type=mlp makes a token of 2 frames, not {frames_per_token}; {remedy}")
        super().__init__()
        self.frames_per_token = 2
        self.conv = PairConv(encoder_width, encoder_width, kernel_size=3, stride=2, padding=1, bias=False, dtype=torch.float32)
        self.linear_1 = _matrix(encoder_width, decoder_width)
        self.linear_2 = _matrix(decoder_width, decoder_width)
        _draw_weights(self)

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns packed encoder frames (2 A, C) into audio tokens (A, D); `first` (B,) is each clip's first token."""
        return self.linear_2(gelu(self.linear_1(self.conv(frames, first))))


class StackProjector(nn.Module):
    """Joins the k frames of a token and puts them through two linear layers, as SLAM-ASR does (Ma et al. 2024)."""

    def __init__(self, encoder_width: int, decoder_width: int, frames_per_token: int | None = None):
        super().__init__()
        self.frames_per_token = frames_per_token or STACKED_FRAMES
        self.linear_1 = _matrix(self.frames_per_token * encoder_width, decoder_width)
        self.linear_2 = _matrix(decoder_width, decoder_width)
        _draw_weights(self)

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns packed encoder frames (k A, C) into audio tokens (A, D)."""
        return self.linear_2(gelu(self.linear_1(stacked(frames, self.frames_per_token))))


class SwiGLUProjector(nn.Module):
    """Joins the k frames of a token, norms them, and gates them as Ultravox does (Shazeer 2020, "GLU variants")."""

    def __init__(self, encoder_width: int, decoder_width: int, frames_per_token: int | None = None):
        super().__init__()
        self.frames_per_token = frames_per_token or STACKED_FRAMES
        width = self.frames_per_token * encoder_width
        self.norm = nn.RMSNorm(width, dtype=torch.float32)
        self.gate = _matrix(width, decoder_width)
        self.up = _matrix(width, decoder_width)
        self.down = _matrix(decoder_width, decoder_width)
        _draw_weights(self)

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns packed encoder frames (k A, C) into audio tokens (A, D)."""
        joined = self.norm(stacked(frames, self.frames_per_token).float())
        return self.down(silu(self.gate(joined)) * self.up(joined))


class MoEProjector(nn.Module):
    """Mixes a few small experts by a router's weights for each token, as MOSA does (Li et al. 2025).

    Every expert computes every token, in one matrix beside the others: a token's weights are soft, so none needs balancing,
    nothing is read back from the device, and workers that share the weights out (ZeRO 3) run in step.
    """

    def __init__(self, encoder_width: int, decoder_width: int, frames_per_token: int | None = None):
        super().__init__()
        self.frames_per_token = frames_per_token or STACKED_FRAMES
        width, expert_width = self.frames_per_token * encoder_width, decoder_width // 2
        self.norm = nn.RMSNorm(width, dtype=torch.float32)
        self.router = _matrix(width, NUM_EXPERTS)
        self.experts_1 = _matrix(width, NUM_EXPERTS * expert_width)
        self.experts_2 = _matrix(NUM_EXPERTS * expert_width, decoder_width)
        _draw_weights(self)

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns packed encoder frames (k A, C) into audio tokens (A, D)."""
        joined = self.norm(stacked(frames, self.frames_per_token).float())
        shares = self.router(joined).softmax(dim=-1)
        hidden = gelu(self.experts_1(joined)).unflatten(-1, (NUM_EXPERTS, -1))
        return self.experts_2((hidden * shares[..., None]).flatten(-2))


class ConvBlock(nn.Module):
    """Sums up a token's neighbours channel by channel, then mixes the channels (ConvNeXt, Liu et al. 2022)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, dtype=torch.float32)
        self.taps = nn.Parameter(torch.empty(CONV_TAPS, width, dtype=torch.float32))
        self.up, self.down = _matrix(width, 2 * width), _matrix(2 * width, width)

    def forward(self, hidden: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Turns (A, width) into (A, width), where `clips` (A,) numbers each token's clip: those of others count as zeros."""
        side, num_tokens = CONV_TAPS // 2, len(hidden)
        normed, owners = pad(self.norm(hidden), (0, 0, side, side)), pad(clips, (side, side))
        mixed = torch.zeros_like(hidden)
        for offset, weights in enumerate(self.taps):
            same = owners[offset : offset + num_tokens] == clips
            mixed = mixed + torch.where(same[:, None], normed[offset : offset + num_tokens], 0) * weights
        return hidden + self.down(gelu(self.up(mixed)))


class ConvProjector(nn.Module):
    """Joins the k frames of a token, and lets each token look at its neighbours before it becomes one of the decoder's size.

    A word is spread over more frames than a token's. The output is normed, and scaled by a gain that begins at the size of
    the decoder's embeddings (`begin_at`), among which the tokens are to lie.
    """

    def __init__(self, encoder_width: int, decoder_width: int, frames_per_token: int | None = None):
        super().__init__()
        self.frames_per_token = frames_per_token or STACKED_FRAMES
        width = encoder_width * 5 // 4
        self.linear_1 = _matrix(self.frames_per_token * encoder_width, width)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(NUM_CONV_BLOCKS))
        self.norm = nn.RMSNorm(width, dtype=torch.float32)
        self.linear_2 = _matrix(width, decoder_width)
        self.gain = nn.Parameter(torch.ones(decoder_width, dtype=torch.float32))
        _draw_weights(self)
        for block in self.blocks:
            nn.init.normal_(block.taps, std=CONV_TAPS**-0.5)  # keeps the size of what it sums up

    @torch.no_grad()
    def begin_at(self, embeddings: torch.Tensor) -> None:
        """Sets the gain of a fresh projector to the root mean square of the decoder's embeddings (V, D)."""
        self.gain.fill_(embeddings.float().square().mean().sqrt())

    def forward(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Turns packed encoder frames (k A, C) into audio tokens (A, D); `first` (B,) is each clip's first token."""
        hidden = self.linear_1(stacked(frames, self.frames_per_token)).float()
        clips = first.new_zeros(len(hidden)).index_fill(0, first, 1).cumsum(0)  # from 1 on
        for block in self.blocks:
            hidden = block(hidden, clips)
        tokens = self.linear_2(self.norm(hidden)).float()
        return rms_norm(tokens, tokens.shape[-1:]) * self.gain


def stacked(frames: torch.Tensor, frames_per_token: int) -> torch.Tensor:
    """Joins the frames of each token: (k A, C) -> (A, k C)."""
    return frames.unflatten(0, (-1, frames_per_token)).flatten(1)


PROJECTORS = {"mlp": MLPProjector, "stack": StackProjector, "swiglu": SwiGLUProjector, "moe": MoEProjector, "conv": ConvProjector}


def make_projector(config: ASRConfig, encoder_width: int, decoder_width: int) -> nn.Module:
    """Makes a fresh projector of the config's kind, between backbones of those widths.

    Raises:
        ConfigError: the kind makes no tokens of `config.frames_per_token` frames.
    """
    return PROJECTORS[config.projector_type](encoder_width, decoder_width, config.frames_per_token)


def fresh_projector(config: ASRConfig, encoder_width: int, embeddings: torch.Tensor) -> nn.Module:
    """Makes a projector whose training begins now, for a decoder with those embeddings (V, D). Else as `make_projector`."""
    projector = make_projector(config, encoder_width, embeddings.shape[1])
    if isinstance(projector, ConvProjector):
        projector.begin_at(embeddings)
    return projector


def frames_per_token(config: ASRConfig) -> int:
    """Returns how many encoder frames the config's projector makes a token of. Else as `make_projector`."""
    with torch.device("meta"):
        return make_projector(config, 2, 2).frames_per_token
