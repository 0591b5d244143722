"""The settings of evaluation, apart from it because a command checks them before it imports what evaluates."""

from __future__ import annotations

from dataclasses import field

from pydantic import NonNegativeInt

from tiny_audio.config import AtLeastOne, ColumnName, Text, settings
from tiny_audio.inference.config import PoolConfig


@settings()
class EvaluateConfig(PoolConfig):
    """The model to score, and the data to score it on."""

    data: Text = "data/synthetic/test/*.parquet"  # a glob, or DATASET:CONFIG:SPLIT as for training
    # the files' names of columns -> ours (ID, wav, text, spk_id, duration, source), {audio: wav, sentence: text}
    columns: dict[Text, ColumnName] = field(default_factory=dict)
    output_dir: Text = "runs/evaluation"  # the folder for evaluation.json and utterances.jsonl
    max_rows: AtLeastOne | None = None  # takes only the first rows; null: all
    control_rows: NonNegativeInt = 100  # rows that a model with a fresh projector is scored on; 0 leaves the controls out
    seed: NonNegativeInt = 0  # of the fresh projector and of the clips of silence
