"""The settings of the service: `Arguments` are those of the application, and `EdgeSettings` those of Serve's proxies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from tiny_audio.audio.config import VadConfig
from tiny_audio.config import AtLeastOne, Text, require, settings
from tiny_audio.config_files import build

CONFIG = Path(__file__).with_name("config.yaml")  # the service's own Serve config
MIDDLEWARES = "tiny_audio.serving.proxy:middlewares"  # what Serve's proxies call
MIDDLEWARES_OF_FURTHER = f"{MIDDLEWARES}_of_further"  # what those call that one of them starts beside it
PREFIX = "TINY_AUDIO_"  # of the environment variables that set EdgeSettings
Seconds = Annotated[float, Field(gt=0)]


@settings()
class Arguments:
    """What `args` in a Serve config may hold."""

    model: Text  # folder that training exported, as Serve's nodes see it; its URL; or a hub id
    models: dict[Text, Text] = field(default_factory=dict)  # further ones on the same backbones, by the clients' names for them
    device: Literal["cpu", "cuda"] = "cpu"  # cuda: a GPU for each replica
    fp8: bool = False  # computes the backbones' linear layers in FP8: faster on Hopper GPUs, slightly inexact
    model_name: Text = "tiny_audio"  # name that clients call the model by
    model_aliases: list[Text] = field(default_factory=list)  # further names of it, such as whisper-1 that many apps have built in
    languages: dict[Text, Text] = field(default_factory=lambda: {"en": "english"})  # codes and names of what the model hears
    max_batch_size: AtLeastOne = 112  # clips that a replica transcribes together: the slots of its cache
    max_queued: AtLeastOne = 64  # clips that may wait for a replica; more get a 429
    min_replicas: NonNegativeInt = 1  # replicas of the model; 0: after a silence there is none, and a request waits for its start
    max_replicas: AtLeastOne = 1  # the most replicas of the model, as the audio in hand asks for them
    target_audio_s: Seconds = 1000.0  # audio in hand, waiting or being transcribed, that a replica should have
    upscale_delay_s: NonNegativeFloat = 30.0  # how long more replicas must be asked for until they start
    downscale_delay_s: NonNegativeFloat = 600.0  # how long fewer must be enough until they end
    num_ingresses: AtLeastOne = 1  # processes that read and decode uploads; a GPU transcribes as fast as about 4 of them
    num_threads: AtLeastOne = 1  # CPU threads, and CPUs reserved, of a replica
    timeout_s: Seconds = 60.0  # for the model's answer to each window, waiting included; keep request_timeout_s above it
    max_duration_s: Annotated[float, Field(ge=1)] = 14_400.0  # of a recording; those longer than the encoder's window are cut
    skip_silence: bool = True  # recordings without speech have no text, and are not given to the model
    vad: VadConfig = field(default_factory=VadConfig)  # what is speech, and where recordings are cut
    max_sessions: AtLeastOne = 256  # realtime sessions of an ingress at a time, which take no place of uploads; more get a 429
    session_idle_s: Seconds = 300.0  # a realtime session whose client sends nothing for so long ends
    session_s: Seconds = 3600.0  # the longest realtime session, as at OpenAI
    docs: bool = False  # describes the API at /docs and /openapi.json

    def __post_init__(self):
        require(bool(self.languages), "languages names none")
        doubled = self.models.keys() & {self.model_name, *self.model_aliases}
        require(not doubled, f"models: {', '.join(sorted(doubled))} is the name of model already")
        bounds = f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}"
        require(self.min_replicas <= self.max_replicas, bounds)
        require(self.device == "cuda" or not self.fp8, "fp8=true computes on GPUs: set device: cuda")

    @property
    def slots_per_ingress(self) -> int:
        """An ingress's share of the slots that all replicas have."""
        return self.max_replicas * self.max_batch_size // self.num_ingresses


@settings()
class EdgeSettings:
    """What the environment of Serve's proxies may set, each as TINY_AUDIO_ and its name in capitals."""

    num_proxies: AtLeastOne = 1  # processes of a node that share its port: as many as the node has GPUs
    max_upload_mib: AtLeastOne = 25  # largest upload; 25 is OpenAI's limit
    max_held_mib: AtLeastOne = 256  # memory of a proxy for uploads, from their arrival until they are answered
    max_requests: AtLeastOne = 256  # requests that a proxy passes on at a time; more get a 429
    upload_grace_s: Seconds = 20.0  # how long an upload may take whatever its rate; then it needs 16 KiB a second
    api_keys: Text | None = None  # file of hashed keys; without it, everybody who reaches the port may call
    cors_origins: Text = ""  # origins of web pages that may call, with commas between them
    drain_token: Text | None = None  # lets its holder end the service in peace; the command makes one

    @property
    def origins(self) -> list[str]:
        """The origins of web pages that may call."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> EdgeSettings:
        """Reads the settings from environment variables.

        Raises:
            ConfigError: a variable with our prefix is unknown, or its value is out of range.
        """
        values = {name.removeprefix(PREFIX): text for name, text in environment.items() if name.startswith(PREFIX)}
        return build(cls, {name.lower(): yaml.safe_load(text) for name, text in values.items()}, PREFIX.lower())
