"""The form of a transcription request: OpenAI's fields, in any spelling that its clients use, checked."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ValidationError, field_validator, model_validator
from starlette.datastructures import FormData
from starlette.datastructures import UploadFile as FilePart

from tiny_audio.audio.config import PaddingMs, PauseMs, Threshold, VadConfig
from tiny_audio.serving.errors import APIError
from tiny_audio.serving.offer import NothingTold

PART_OF_OBJECT = re.compile(r"(\w+)\[(\w+)\]")
MAX_FIELD_BYTES = 64 << 10
Lower = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


class ServerVad(BaseModel, extra="forbid"):
    """Where OpenAI's `server_vad` cuts a recording."""

    type: Literal["server_vad"]
    threshold: Threshold = 0.5
    prefix_padding_ms: PaddingMs = 300
    silence_duration_ms: PauseMs = 200

    def config(self) -> VadConfig:
        """Returns the detector's settings, with which each turn of a speaker is a window."""
        return VadConfig(self.threshold, self.prefix_padding_ms, self.silence_duration_ms, join_pause_ms=0)


class TranscriptionForm(BaseModel, extra="forbid"):
    """The fields of OpenAI's form. What the model cannot do is refused by name, and nothing is left out in silence."""

    file: UploadFile
    model: str
    language: str | None = None
    languages: list[str] = []
    prompt: Annotated[str | None, NothingTold] = None
    keywords: Annotated[list[str], NothingTold] = []
    response_format: Annotated[Literal["json", "text", "srt", "vtt", "verbose_json"], Lower] = "json"
    temperature: float = 0.0
    timestamp_granularities: list[Annotated[Literal["segment", "word"], Lower]] = []
    stream: bool = False
    include: list[Literal["logprobs"]] = []
    chunking_strategy: Literal["auto"] | ServerVad | None = None
    known_speaker_names: Annotated[list[str], NothingTold] = []
    known_speaker_references: Annotated[list[str], NothingTold] = []

    @field_validator("response_format", mode="before")
    @classmethod
    def _has_no_speakers(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() == "diarized_json":
            raise ValueError("this model does not tell speakers apart; take verbose_json")
        return value

    @field_validator("temperature")
    @classmethod
    def _is_greedy(cls, value: float) -> float:
        if value:
            raise ValueError("decoding is greedy, so only 0 is possible; leave it out")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> TranscriptionForm:
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities: wants response_format=verbose_json")
        if self.include and self.response_format != "json":
            raise ValueError("include: wants response_format=json, as at OpenAI; verbose_json has avg_logprob")
        if self.stream and self.response_format not in ("json", "text", "verbose_json"):
            raise ValueError("stream: wants response_format=json, text, or verbose_json, which brings the times")
        return self

    def wants_words(self, known: bool) -> bool:
        """Says whether words get times: where they are asked for, and in a stream with times if nothing else is asked for.

        Args:
            known: whether the model knows the times of words.

        Raises:
            APIError: they are asked for, and the model does not know them.
        """
        asked = self.timestamp_granularities
        if "word" in asked and not known:
            raise _refusal("timestamp_granularities", "this model knows no word times; take segment")
        return known and ("word" in asked or (self.stream and self.response_format == "verbose_json" and not asked))


LISTS = {name for name, field in TranscriptionForm.model_fields.items() if str(field.annotation).startswith("list")}


def read_form(parts: FormData) -> TranscriptionForm:
    """Checks the parts of a form.

    Takes the spellings `name[]`, `name[key]` and `name`, JSON for an object, and "" for a field that is left out.

    Raises:
        APIError: a field is missing, unknown, given twice, or has a value that is not possible here.
    """
    values: dict[str, Any] = {}
    for name, value in parts.multi_items():
        if isinstance(value, FilePart) == (name == "file"):
            _put(values, name, value)
        elif name == "file":
            raise _refusal("file", "the part has no file name")
        else:
            raise _refusal(name, "is a file, and only `file` may be one")
    try:
        return TranscriptionForm.model_validate(values)
    except ValidationError as error:
        raise _as_refusal(error) from None


def _put(values: dict[str, Any], name: str, value: str | FilePart) -> None:
    """Adds a part of the form to the values of its fields."""
    if value == "":
        return
    base = name.removesuffix("[]")
    if base in LISTS:
        values.setdefault(base, []).append(value)
    elif match := PART_OF_OBJECT.fullmatch(name):
        fields = values.setdefault(match[1], {})
        if not isinstance(fields, dict) or match[2] in fields:
            raise _refusal(match[1], "is given twice")
        fields[match[2]] = value
    elif base in values:
        raise _refusal(base, "is given twice")
    else:
        values[base] = _parsed(value)


def _parsed(value: str | FilePart) -> Any:
    """Returns the object that a value has in JSON, or the value."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _refusal(param: str, message: str) -> APIError:
    return APIError(400, f"{param}: {message}", "invalid_value", param)


def _as_refusal(error: ValidationError) -> APIError:
    """Words the first of pydantic's errors; of a union's errors, that of the member which comes closest to the value."""
    errors = error.errors()
    first = max((one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]), key=lambda one: len(one["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # of several fields together
        return APIError(400, message, "invalid_value", message.partition(":")[0])
    param = str(first["loc"][0])
    if first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        message = f"is unknown; known: {', '.join(TranscriptionForm.model_fields)}"
    else:
        param = _spelled(first["loc"])
    return _refusal(param, message)


def _spelled(loc: tuple) -> str:
    """Returns the field of an error as a client spells it, such as `chunking_strategy[threshold]`."""
    base, *parts = (part for part in loc if isinstance(part, str))
    return base + "".join(f"[{part}]" for part in parts if part in ServerVad.model_fields)


def form_schema() -> dict[str, Any]:
    """Describes the form as OpenAPI does."""
    schema = TranscriptionForm.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return definitions[node["$ref"].rpartition("/")[2]]
            return {name: inlined(value) for name, value in node.items()}
        return [inlined(value) for value in node] if isinstance(node, list) else node

    return inlined(schema)
