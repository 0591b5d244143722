"""The events of OpenAI's realtime API, as the server sends them."""

from __future__ import annotations

import secrets
from typing import Any

from tiny_audio.serving.errors import APIError

TRANSCRIPTION = "conversation.item.input_audio_transcription"


def new_id(kind: str) -> str:
    """Returns an id that nothing else has, such as item_5f0c..."""
    return f"{kind}_{secrets.token_hex(12)}"


def event(kind: str, **fields: Any) -> dict[str, Any]:
    """Makes an event of the server."""
    return {"type": kind, "event_id": new_id("event")} | fields


def error_event(error: APIError, event_id: str | None = None) -> dict[str, Any]:
    """Makes the event of an error; `event_id` is that of the client's event that caused it."""
    return event("error", error=error.body["error"] | {"event_id": event_id})


def item_events(item_id: str, previous_item_id: str | None) -> list[dict[str, Any]]:
    """Makes the events of a new item: audio of the user, which is there and done at once."""
    content = [{"type": "input_audio", "transcript": None}]
    item = {"id": item_id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
    kinds = ("created", "added", "done")  # the first is what older clients wait for
    fields = {"previous_item_id": previous_item_id, "item": item | {"content": content}}
    return [event(f"conversation.item.{kind}", **fields) for kind in kinds]


def delta_event(item_id: str, delta: str, logprobs: list[dict] | None) -> dict[str, Any]:
    """Makes the event that brings the next piece of an item's text, and the `logprobs` of its tokens if they are wanted."""
    return event(f"{TRANSCRIPTION}.delta", item_id=item_id, content_index=0, delta=delta, logprobs=logprobs)


def completed_event(item_id: str, transcript: str, logprobs: list[dict] | None, usage: dict[str, Any]) -> dict[str, Any]:
    """Makes the event that brings an item's whole text, as `delta_event` does a piece."""
    texts = {"transcript": transcript, "logprobs": logprobs}
    return event(f"{TRANSCRIPTION}.completed", item_id=item_id, content_index=0, **texts, usage=usage)


def failed_event(item_id: str, error: APIError) -> dict[str, Any]:
    """Makes the event of an item that has no text, and says why."""
    return event(f"{TRANSCRIPTION}.failed", item_id=item_id, content_index=0, error=error.body["error"])
