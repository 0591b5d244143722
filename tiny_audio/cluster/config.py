"""Defines the settings of an estimate; this file imports nothing slow."""

from __future__ import annotations

from pydantic import NonNegativeFloat

from tiny_audio.config import AtLeastOne, TrainConfig, settings


@settings()
class EstimateConfig(TrainConfig):
    """Holds a training's own settings and what hardware costs."""

    usd_per_gpu_hour: NonNegativeFloat | None = None  # the price of a GPU for an hour; null leaves dollars out
    cores_per_decode_node: AtLeastOne = 16  # CPU cores of a node that decodes
