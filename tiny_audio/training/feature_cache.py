"""Encoder frames of clips that a worker has met before: where epochs repeat, the frozen encoder need not run again."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from tiny_audio.audio.clip import Clip


def key_of(clip: Clip) -> tuple[str, int]:
    """By the audio too: an ID may occur twice."""
    return clip.id, zlib.crc32(clip.pcm)


class FeatureCache:
    """(frames, C) encodings by clip, in host memory, until `limit_bytes` are full: then clips that came first stay.

    Clips without text are silence that was made for one epoch: they do not come again.
    """

    def __init__(self, limit_bytes: float):
        self.left_bytes = limit_bytes
        self.kept: dict[tuple[str, int], torch.Tensor] = {}

    def find(self, clip: Clip) -> torch.Tensor | None:
        return self.kept.get(key_of(clip)) if self.kept else None

    def keep(self, clips: Sequence[Clip], encoded: torch.Tensor, num_frames: Sequence[int]) -> None:
        """Takes in what the encoder made of clips, end to end: (sum of num_frames, C)."""
        for clip, frames in zip(clips, encoded.cpu().split(list(num_frames)), strict=True):
            key = key_of(clip)
            if clip.text and key not in self.kept and frames.nbytes <= self.left_bytes:
                self.kept[key] = frames.clone()
                self.left_bytes -= frames.nbytes
