"""The settings of the benchmarks; it imports nothing that takes long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tiny_audio.config import Text, settings


@settings()
class BenchmarkConfig:
    """What to measure, and where its inputs (9 GB) and results go."""

    part: Literal["step", "memory", "profile", "seed_job", "scale", "restart", "fp8", "plan", "soak"] = "step"  # see above
    soak_minutes: Annotated[float, Field(ge=5)] = 45.0  # how long part=soak trains
    output_dir: Text = "runs/benchmark"  # the folder for inputs and results
