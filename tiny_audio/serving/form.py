"""The form of a transcription request: OpenAI's fields, checked."""

from typing import Literal

from fastapi import UploadFile
from pydantic import BaseModel, field_validator


class TranscriptionForm(BaseModel, extra="forbid"):
    """Holds OpenAI's form fields; `language` and `prompt` are accepted but change nothing, since this model takes neither."""

    file: UploadFile
    model: str
    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text"] = "json"
    temperature: float = 0.0
    stream: bool = False

    @field_validator("temperature", "stream")
    @classmethod
    def _is_off(cls, value: float | bool) -> float | bool:
        if value:
            raise ValueError("not supported; leave it out (decoding is greedy, and a transcript comes whole)")
        return value
