"""The settings of evaluation, apart from it because a command checks them before it imports what evaluates."""

from __future__ import annotations

import os
from dataclasses import field

from pydantic import NonNegativeInt

from tiny_audio.config import AtLeastOne, ColumnName, Text, require, settings


@settings()
class EvaluateConfig:
    """The model to score, and the data to score it on."""

    model: Text = "runs/quickstart/model"  # a folder that training exported, its URL, or a hub id
    data: Text = "data/synthetic/test/*.parquet"  # a glob, or DATASET:CONFIG:SPLIT as for training
    # the files' names of columns -> ours (ID, wav, text, spk_id, duration, source), {audio: wav, sentence: text}
    columns: dict[Text, ColumnName] = field(default_factory=dict)
    output_dir: Text = "runs/evaluation"  # the folder for evaluation.json and utterances.jsonl
    max_rows: AtLeastOne | None = None  # takes only the first rows; null: all
    num_actors: AtLeastOne = 1  # copies of the model that transcribe side by side
    use_gpu: bool = False  # gives each actor a GPU
    fp8: bool = False  # computes the backbones' linear layers in FP8: faster on Hopper GPUs, slightly inexact
    num_threads: AtLeastOne = field(default_factory=lambda: os.cpu_count() or 1)  # CPU threads of an actor, without a GPU
    batch_rows: AtLeastOne = 64  # clips that an actor is given at a time
    control_rows: NonNegativeInt = 100  # rows that a model with a fresh projector is scored on; 0 leaves the controls out
    seed: NonNegativeInt = 0  # of the fresh projector and of the clips of silence

    def __post_init__(self):
        require(self.use_gpu or not self.fp8, "fp8=true computes on GPUs: set use_gpu=true")
