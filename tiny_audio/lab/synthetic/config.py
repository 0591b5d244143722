"""Settings of the synthetic data set."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.config import require, require_at_least


@dataclass
class PrepareConfig:
    """How many rows the data set has, how they are laid out in files, and where they go."""

    output_dir: str = "data/synthetic"
    seed: int = 1
    num_train: int = 2000
    num_dev: int = 64
    num_test: int = 300  # of each of the three test sets
    num_broken: int = 12  # of the train rows
    rows_per_row_group: int = 50
    rows_per_file: int = 250

    def __post_init__(self):
        require_at_least(self, 1, "num_train", "num_dev", "num_test", "rows_per_row_group", "rows_per_file")
        require(0 <= self.num_broken <= self.num_train, f"num_broken must be 0 to num_train, not {self.num_broken}")
