"""What a transcription answers with: JSON, or text."""

from typing import Any, Literal

from fastapi.responses import JSONResponse, PlainTextResponse, Response


def answer(transcript: dict[str, Any], duration_s: float, response_format: Literal["json", "text"]) -> Response:
    """Builds the response with a transcript, whose fields are the `Transcript`'s, of a clip of `duration_s` seconds."""
    if response_format == "text":
        return PlainTextResponse(transcript["text"])
    body = {name: transcript[name] for name in ("text", "complete", "looped")}
    return JSONResponse({**body, "usage": {"type": "duration", "seconds": duration_s}})
