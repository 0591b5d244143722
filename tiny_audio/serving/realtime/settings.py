"""The settings of a realtime session: OpenAI's, checked against what the service can do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError, field_validator, model_validator

from tiny_audio.audio.config import PaddingMs, PauseMs, Threshold, VadConfig
from tiny_audio.serving.errors import APIError
from tiny_audio.serving.offer import NothingTold, Offer
from tiny_audio.serving.realtime.sound import FORMATS, AudioFormat

# Names in the older event `transcription_session.update`, whose settings are flat.
FLAT_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
FLAT_INPUTS = {"input_audio_transcription": "transcription", "input_audio_noise_reduction": "noise_reduction"}


class Part(BaseModel, extra="forbid"):
    """Refuses what it does not know: nothing is left out in silence."""


class Format(Part):
    """The audio that the client sends."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    @model_validator(mode="after")
    def _has_its_rate(self) -> Format:
        rate = FORMATS[self.type].rate
        if self.rate not in (None, rate):
            raise ValueError(f"{self.type} has a rate of {rate}")
        self.rate = rate
        return self


class Transcription(Part):
    """The model, and what it is told."""

    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: Annotated[str | None, NothingTold] = None
    keywords: Annotated[list[str] | None, NothingTold] = None
    delay: Annotated[str | None, NothingTold] = None


class TurnDetection(Part):
    """Where a turn begins and ends, by the voice activity detector."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Threshold = 0.5
    prefix_padding_ms: PaddingMs = 300
    silence_duration_ms: PauseMs = 500
    create_response: Literal[False] | None = None  # a transcription has no responses
    interrupt_response: bool | None = None
    idle_timeout_ms: None = None

    @field_validator("type", mode="before")
    @classmethod
    def _hears_no_meaning(cls, value: Any) -> Any:
        if value == "semantic_vad":
            raise ValueError("this service hears pauses, not meaning; take server_vad")
        return value

    def vad(self) -> VadConfig:
        """Returns the detector's settings."""
        return VadConfig(self.threshold, self.prefix_padding_ms, self.silence_duration_ms)


class Input(Part):
    """What is done with the client's audio."""

    format: Format = Format()
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = TurnDetection()
    noise_reduction: None = None

    @field_validator("noise_reduction", mode="before")
    @classmethod
    def _is_off(cls, value: Any) -> None:
        if value:
            raise ValueError("this service does not reduce noise; leave it out")


class Audio(Part):
    """The audio of a session; there is none in return."""

    input: Input = Input()


class Settings(Part):
    """Everything that a client may set."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_transcription(cls, value: Any) -> Any:
        if value == "realtime":
            raise ValueError("this service transcribes, and does not converse; take transcription")
        return value

    @property
    def input(self) -> Input:
        """What is done with the client's audio."""
        return self.audio.input

    @property
    def audio_format(self) -> AudioFormat:
        """The format of the client's audio."""
        return FORMATS[self.input.format.type]


def first_settings(offer: Offer, model: str | None) -> Settings:
    """Returns the settings with which a session begins.

    Raises:
        APIError: there is no such model.
    """
    offer.require_model(model := model or offer.model_names[0])
    transcription = Transcription(model=model, language=next(iter(offer.languages)))
    return Settings(audio=Audio(input=Input(transcription=transcription)))


def updated_settings(offer: Offer, present: Settings, given: Any) -> Settings:
    """Returns the settings after an update: what is left out stays, and null clears.

    Raises:
        APIError: a setting is unknown, or has a value that is not possible here; the present settings stay.
    """
    try:
        settings = Settings.model_validate(_merged(present.model_dump(), given))
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, ("session", *first["loc"])))
        message = "is unknown" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise APIError(400, f"{param}: {message}", "invalid_value", param) from None
    param, asked = "session.audio.input.transcription", settings.input.transcription
    offer.require_model(asked.model or offer.model_names[0], f"{param}.model")
    for language in (asked.language, *(asked.languages or [])):
        offer.language(language, f"{param}.language")
    return settings


def _merged(present: Any, given: Any) -> Any:
    """Puts what is given over what is there; an object of another `type` takes the place of the whole."""
    if not isinstance(present, dict) or not isinstance(given, dict):
        return given
    if given.get("type", present.get("type")) != present.get("type"):
        return given
    return present | {name: _merged(present.get(name), value) for name, value in given.items()}


def from_flat(given: Any) -> Any:
    """Returns the settings of a `transcription_session.update` in the shape of a `session.update`."""
    if not isinstance(given, dict):
        return given
    update, inputs = {}, {}
    for name, value in given.items():
        if name == "input_audio_format":
            inputs["format"] = {"type": FLAT_FORMATS.get(value, value) if isinstance(value, str) else value}
        elif name in (*FLAT_INPUTS, "turn_detection"):
            inputs[FLAT_INPUTS.get(name, name)] = value
        elif (name, value) != ("modalities", ["text"]):
            update[name] = value
    return update | {"audio": {"input": inputs}}


def as_flat(settings: Settings) -> dict[str, Any]:
    """Returns the settings in the shape of a `transcription_session.updated`."""
    of_input = settings.input.model_dump()
    names = {value: name for name, value in FLAT_FORMATS.items()}
    return {
        "input_audio_format": names[settings.input.format.type],
        "input_audio_transcription": of_input["transcription"],
        "input_audio_noise_reduction": None,
        "turn_detection": of_input["turn_detection"],
        "include": settings.include,
    }
