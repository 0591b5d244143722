"""What a replica says of a clip's text while it is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Written(NamedTuple):
    """Holds a token of a text: its id, its natural log-probability, and its bytes, which may end within a character."""

    id: int
    logprob: float
    data: bytes


class Piece(NamedTuple):
    """Holds the next piece of a text, which ends at a whole character, and the tokens that wrote it."""

    text: str
    tokens: list[Written]


def as_logprobs(tokens: Iterable[Written]) -> list[dict[str, Any]]:
    """Returns tokens as OpenAI's `logprobs` have them."""
    return [{"token": one.data.decode(errors="replace"), "bytes": list(one.data), "logprob": one.logprob} for one in tokens]
