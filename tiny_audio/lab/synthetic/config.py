"""The settings of the synthetic data set; it imports nothing that takes long."""

from __future__ import annotations

from pydantic import NonNegativeInt

from tiny_audio.config import AtLeastOne, Text, require, settings


@settings()
class SyntheticConfig:
    """The size and the place of the synthetic data set."""

    output_dir: Text = "data/synthetic"  # the folder for train/, dev/ and test/
    seed: NonNegativeInt = 1  # of the sentences and their voices
    # a file of sentences, one a line, that are spoken and are the labels; null: those that a small grammar writes
    texts: Text | None = None
    num_train: AtLeastOne = 2000  # rows of the training set
    num_dev: AtLeastOne = 64  # rows of the validation set
    num_test: AtLeastOne = 300  # rows of each test set; "words", the third, is made of the grammar's sentences alone
    num_broken: NonNegativeInt = 12  # training rows that are broken on purpose
    rows_per_row_group: AtLeastOne = 50  # of the Parquet files
    rows_per_file: AtLeastOne = 250  # a Ray Data task makes each file

    def __post_init__(self):
        require(self.num_broken <= self.num_train, f"num_broken must be at most num_train, not {self.num_broken}")
