"""Defines the settings of batch transcription; this file imports nothing slow."""

from __future__ import annotations

import os
from dataclasses import field
from typing import Annotated

from pydantic import Field

from tiny_audio.audio.config import VadConfig
from tiny_audio.config import AtLeastOne, Text, require, settings

MAX_DURATION_S = 86_400.0  # a day


@settings()
class PoolConfig:
    """Says which model a pool of actors transcribes with, and what each of them may use."""

    model: Text = "runs/quickstart/model"  # a folder that training exported, its URL, or a hub id
    num_actors: AtLeastOne = 1  # copies of the model that transcribe side by side
    use_gpu: bool = False  # gives each actor a GPU
    fp8: bool = False  # computes the backbones' linear layers in FP8: faster on Hopper GPUs, slightly inexact
    num_threads: AtLeastOne = field(default_factory=lambda: os.cpu_count() or 1)  # CPU threads of an actor, without a GPU
    batch_rows: AtLeastOne = 64  # clips that an actor is given at a time

    def __post_init__(self):
        require(self.use_gpu or not self.fp8, "fp8=true computes on GPUs: set use_gpu=true")


@settings()
class TranscribeConfig(PoolConfig):
    """Says which files to transcribe, and into which file."""

    # audio files, folders that are searched for them, globs, URLs (https://, s3://, gs://, hf://), and - for stdin
    inputs: list[Text] = field(default_factory=list)
    # the file for the transcripts; its suffix says the form: .jsonl, .txt, .csv, .srt or .vtt. A * in it stands for an
    # input's name, subtitles/*.srt, and makes a file for each (with its folder, where two inputs have the same name)
    output: Text = "transcripts.jsonl"
    max_duration_s: Annotated[float, Field(ge=1)] = MAX_DURATION_S  # longer recordings are rejected
    # recordings longer than this are cut at pauses; null: what the encoder takes, and windows of 28 s at most
    window_s: Annotated[float, Field(ge=1)] | None = None
    words: bool = False  # adds the times of the words to .jsonl, from a model with a CTC head
    skip_silence: bool = True  # clips without speech have no text, and are not given to the model
    vad: VadConfig = field(default_factory=VadConfig)
