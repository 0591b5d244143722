"""Defines the settings of the voice activity detector; this file imports nothing slow."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiny_audio.config import settings

Threshold = Annotated[float, Field(gt=0, lt=1)]
PaddingMs = Annotated[int, Field(ge=0, le=5000)]
PauseMs = Annotated[int, Field(ge=32, le=5000)]  # from a frame of the detector


@settings("vad")
class VadConfig:
    """Says what counts as speech, and where a long recording is cut. The first three keys are those of OpenAI's `server_vad`."""

    threshold: Threshold = 0.5  # probability of speech at which it begins; it ends 0.15 below
    prefix_padding_ms: PaddingMs = 200  # sound that is kept before speech and after it
    silence_duration_ms: PauseMs = 200  # a shorter pause does not end speech
    # windows of a long recording join speech across pauses up to this; a model trained on single sentences wants 0
    join_pause_ms: Annotated[int, Field(ge=0, le=30_000)] = 2000
