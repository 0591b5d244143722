"""Settings of the benchmark. Its parts are the modules of the folder `parts`, each with a function `measure`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules

from tiny_audio.config import output_path, require, require_at_least

PARTS = tuple(sorted(module.name for module in iter_modules([str(Path(__file__).with_name("parts"))])))


@dataclass
class BenchmarkConfig:
    """What to measure, and where its inputs (9 GB) and results go."""

    part: str = "step"
    soak_minutes: float = 45.0  # of part=soak
    output_dir: str = "runs/benchmark"

    def __post_init__(self):
        require_at_least(self, 5, "soak_minutes")
        require(self.part in PARTS, f"part must be one of {', '.join(PARTS)}, not {self.part!r}")

    @property
    def output_folder(self) -> Path:
        """`output_dir` as an absolute path.

        Raises:
            ConfigError: `output_dir` is a URL, or relative in a submitted job.
        """
        return output_path(self.output_dir)
