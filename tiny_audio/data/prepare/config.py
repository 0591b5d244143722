"""Defines the settings of the job that makes shards of people's own files; this file imports nothing slow."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from tiny_audio.config import AtLeastOne, ShareBelowOne, Text, require, settings

PreparedColumn = Literal["ID", "wav", "text", "spk_id", "source", "split"]


@settings()
class PrepareConfig:
    """Says which files to take in, and which folder their shards go to."""

    # what to take in: folders of audio with transcripts beside it (clip.wav, clip.txt) or with a metadata.csv, manifests
    # (.csv, .tsv, .jsonl), globs of Parquet files, DATASET:CONFIG:SPLIT
    inputs: list[Text] = field(default_factory=list)
    output_dir: Text = "data/mine"  # the folder for train/, dev/, test/ and report.json
    # an input's names of columns -> ours (ID, wav, text, spk_id, source, split); the usual names are known
    columns: dict[Text, PreparedColumn] = field(default_factory=dict)
    dev_share: ShareBelowOne = 0.05  # share of the rows for dev/, where the input has no splits of its own; 0 makes none
    test_share: ShareBelowOne = 0.05  # share of the rows for test/
    seed: NonNegativeInt = 0  # of the draw of the speakers for dev/ and test/
    max_duration_s: Annotated[float, Field(ge=0.01)] = 30.0  # longer clips are rejected
    encoding: Literal["keep", "flac"] = "keep"  # keep: the files' own bytes | flac: mono at 16 kHz, for large files
    rows_per_row_group: AtLeastOne = 100  # of the Parquet files: what a training reads at once
    rows_per_file: AtLeastOne = 500  # rows that a task takes in
    check: bool = False  # true writes the report alone, and no shards

    def __post_init__(self):
        require(self.dev_share + self.test_share < 1, "dev_share and test_share leave nothing to train on")
