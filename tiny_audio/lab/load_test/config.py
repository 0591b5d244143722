"""Defines the settings of the load test; this file imports nothing slow."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tiny_audio.config import AtLeastOne, Text, require, settings
from tiny_audio.storage import output_path

Positive = Annotated[float, Field(gt=0)]


@settings()
class LoadTestConfig:
    """Says which servers to ask, with which clips, and how often."""

    # the URL of the API, and the model that it is asked for; further servers stand beside the first
    servers: dict[Text, Text] = field(default_factory=lambda: {"http://127.0.0.1:8000/v1": "tiny_audio"})
    # closed loops: so many clients at once, each of which sends its next clip when the last one is answered
    clients: list[AtLeastOne] = field(default_factory=lambda: [1, 8, 32, 128])
    # open loops: so many requests a second, at random times (a Poisson process), whether the earlier ones are answered or not
    requests_per_s: list[Positive] = field(default_factory=list)
    duration_s: Positive = 30.0  # how long each load lasts
    warm_up_s: float = Field(5.0, ge=0)  # how long each load goes on before it counts
    inputs: list[Text] = field(default_factory=list)  # audio files, folders or globs to send as they are; else clips are made
    # what made clips hold: speech (needs the extra [data]) or noise, which a server may well not transcribe at all
    made_of: Literal["speech", "noise"] = "speech"
    mean_s: Annotated[float, Field(ge=1)] = 8.7  # mean duration of the made clips, which are lognormal as LoquaciousSet's
    longest_s: Annotated[float, Field(ge=1)] = 30.0  # longest made clip: the server's window
    stream: bool = False  # asks for a stream, and measures when the first text comes
    timeout_s: Positive = 120.0  # longest wait for an answer
    output_dir: Text = "runs/load_test"  # folder for load_test.json and load_test.png

    def __post_init__(self):
        require(bool(self.servers), "servers must name a server, as {http://127.0.0.1:8000/v1: tiny_audio}")
        require(bool(self.clients or self.requests_per_s), "give a load: clients=[8] or requests_per_s=[20]")

    @property
    def output_folder(self) -> Path:
        """`output_dir` as an absolute path.

        Raises:
            ConfigError: `output_dir` is a URL, or relative in a submitted job.
        """
        return output_path(self.output_dir)
