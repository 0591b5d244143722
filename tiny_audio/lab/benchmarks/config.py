"""The settings of the benchmarks; it imports nothing that takes long.

A part is a module of the folder `parts`, with a function `measure`.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated

from pydantic import Field

from tiny_audio.config import Text, require, settings
from tiny_audio.storage import output_path

PARTS = tuple(sorted(module.name for module in iter_modules([str(Path(__file__).with_name("parts"))])))


@settings()
class BenchmarkConfig:
    """What to measure, and where its inputs (9 GB) and results go."""

    part: Text = "step"  # see above
    soak_minutes: Annotated[float, Field(ge=5)] = 45.0  # how long part=soak trains
    output_dir: Text = "runs/benchmark"  # the folder for inputs and results

    def __post_init__(self):
        require(self.part in PARTS, f"part must be one of {', '.join(PARTS)}, not {self.part!r}")

    @property
    def output_folder(self) -> Path:
        """`output_dir` as an absolute path.

        Raises:
            ConfigError: `output_dir` is a URL, or relative in a submitted job.
        """
        return output_path(self.output_dir)
