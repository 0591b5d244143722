"""The settings of a CTC head's training, apart from it because a command checks them before it imports what trains."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from tiny_audio.config import AtLeastOne, ColumnName, Text, settings


@settings()
class CTCHeadConfig:
    """The model that gets a head, and the speech that the head learns from."""

    model: Text = "runs/quickstart/model"  # a folder that training exported; the head is written into it
    # globs, or DATASET:CONFIG:SPLIT as for training; people's speech, made speech, or both
    data: list[Text] = field(default_factory=lambda: ["data/synthetic/train/*.parquet"])
    # the files' names of columns -> ours (ID, wav, text, spk_id, duration, source), {audio: wav, sentence: text}
    columns: dict[Text, ColumnName] = field(default_factory=dict)
    max_rows: AtLeastOne = 2000  # of each of `data`; all their encoder frames are kept in memory, 0.2 GB an hour for Whisper base
    num_epochs: AtLeastOne = 20  # passes over the frames
    batch_rows: AtLeastOne = 16  # clips in each step
    learning_rate: Annotated[float, Field(gt=0)] = 0.02  # the highest
    device: Literal["cpu", "cuda"] = "cpu"  # where the encoder computes
    seed: NonNegativeInt = 0  # of the first weights, the clips' order and the clips of noise
