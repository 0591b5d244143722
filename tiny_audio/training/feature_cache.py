"""Encoder frames of clips that a worker has trained before, so that the frozen encoder need not run again in later epochs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from tiny_audio.audio.clip import Clip


def key_of(clip: Clip) -> tuple[str, int]:
    """Returns a clip's key: its ID and a checksum of its audio, because an ID may occur twice."""
    return clip.id, zlib.crc32(clip.pcm)


class FeatureCache:
    """Keeps clips' encodings, (frames, C) each, in host memory; once `limit_bytes` are full it takes no more.

    Clips without text are silence made for one epoch; they do not come again and are not kept.
    """

    def __init__(self, limit_bytes: float):
        self.left_bytes = limit_bytes
        self.frames_by_clip: dict[tuple[str, int], torch.Tensor] = {}

    def find(self, clip: Clip) -> torch.Tensor | None:
        """Returns the clip's frames, (frames, C), or None if they are not kept."""
        return self.frames_by_clip.get(key_of(clip)) if self.frames_by_clip else None

    def keep(self, clips: Sequence[Clip], encoded: torch.Tensor, num_frames: Sequence[int]) -> None:
        """Takes in the encodings of clips, which lie end to end: (sum of num_frames, C)."""
        for clip, frames in zip(clips, encoded.cpu().split(list(num_frames)), strict=True):
            key = key_of(clip)
            if clip.text and key not in self.frames_by_clip and frames.nbytes <= self.left_bytes:
                self.frames_by_clip[key] = frames.clone()
                self.left_bytes -= frames.nbytes
