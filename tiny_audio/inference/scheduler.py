"""Decides which requests join the running transcripts and when a transcript ends. Pure Python: it uses no torch, no device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

LONGEST_PERIOD = 16  # tokens of a phrase that a loop repeats
LOOP_TOKENS = 64  # a phrase repeated over this many tokens, at least four times, is a loop: 13 s of speech at SmolLM3's rate
LOOP_CHECK_EVERY = 16  # tokens


@dataclass(frozen=True)
class Answer:
    """Holds the token ids that the decoder wrote, without the end of turn.

    `complete` is False if they were cut off: at the longest transcript, or because they repeated themselves (`looped`).
    """

    ids: list[int]
    complete: bool
    looped: bool


@dataclass(eq=False)
class Request:
    """Follows a clip on its way to its transcript."""

    pcm: np.ndarray  # (S,) int16 at 16 kHz
    num_tokens: int  # positions of its prompt, including the audio
    max_new_tokens: int
    on_token: Callable[[int], None] | None = None  # called with each id as it comes, on the engine's thread
    model: str | None = None  # the model that is asked, of those that share the backbones; None is the first
    future: Future[Answer] = field(default_factory=Future)
    slot: int = -1
    num_launched: int = 0  # tokens that the device has made or is making
    ids: list[int] = field(default_factory=list)  # tokens known to the host
    arrived_at: float = field(default_factory=time.monotonic)  # seconds of that clock, as the next two
    joined_at: float | None = None  # when it got its slot
    first_token_at: float | None = None  # when its first token was known

    @property
    def position(self) -> int:
        """Position of the newest token in the slot."""
        return self.num_tokens + self.num_launched - 1

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def finish(self, complete: bool, looped: bool) -> None:
        with suppress(InvalidStateError):  # cancelled by its caller just now
            self.future.set_result(Answer(self.ids, complete, looped))


def loops(ids: list[int]) -> bool:
    """Says whether the last LOOP_TOKENS ids repeat one phrase over and over."""
    tail = ids[-LOOP_TOKENS:]
    if len(tail) < LOOP_TOKENS:
        return False
    return any(tail[period:] == tail[:-period] for period in range(1, LONGEST_PERIOD + 1))


class Scheduler:
    """Keeps the requests that wait, in order of arrival, and those that run, by their slots.

    A prefill has at most `max_prefill_rows` requests, and reads at most `max_prefill_tokens`: not the `num_shared_tokens` that
    begin every prompt.
    """

    def __init__(self, num_slots: int, end_id: int, max_prefill_rows: int, max_prefill_tokens: int, num_shared_tokens: int = 0):
        self.num_slots, self.end_id, self.num_shared_tokens = num_slots, end_id, num_shared_tokens
        self.max_prefill_rows, self.max_prefill_tokens = max_prefill_rows, max_prefill_tokens
        self.waiting: deque[Request] = deque()
        self.live: dict[int, Request] = {}
        self.most_live = 0  # so far

    def admit(self) -> list[Request]:
        """Picks the requests that join now: those that waited longest, as many as slots and the budget of a prefill allow.

        Where slots are short, they join when there is room for a whole batch: a prefill of a few clips costs as much as
        a larger one, and holds up all that run.
        """
        while self.waiting and self.waiting[0].future.cancelled():
            self.waiting.popleft()
        num_free = self.num_slots - len(self.live)
        if self.live and num_free < min(len(self.waiting), self.max_prefill_rows, self.num_slots):
            return []
        admitted: list[Request] = []
        num_tokens = 0
        while self.waiting and len(admitted) < min(num_free, self.max_prefill_rows):
            num_tokens += self.waiting[0].num_tokens - self.num_shared_tokens
            if admitted and num_tokens > self.max_prefill_tokens:
                break
            request = self.waiting.popleft()
            if not request.future.cancelled():
                admitted.append(request)
        return admitted

    def start(self, requests: list[Request]) -> None:
        """Marks requests that have their slots as running."""
        self.live |= {request.slot: request for request in requests}
        for request in requests:
            request.joined_at = time.monotonic()
        self.most_live = max(self.most_live, len(self.live))

    def rows(self) -> list[Request]:
        """Lists the requests that run and need another token."""
        return [request for request in self.live.values() if request.num_launched < request.max_new_tokens]

    def take_token(self, request: Request, token: int) -> bool:
        """Adds a token to a running request; returns whether the request ends there, finished or cancelled by its caller."""
        if request.future.cancelled():
            return True
        request.first_token_at = request.first_token_at or time.monotonic()
        if token == self.end_id:
            request.finish(complete=True, looped=False)
            return True
        request.ids.append(token)
        if request.on_token:
            request.on_token(token)
        looped = len(request.ids) % LOOP_CHECK_EVERY == 0 and loops(request.ids)
        if looped or len(request.ids) == request.max_new_tokens:
            request.finish(complete=False, looped=looped)
        return request.future.done()
