"""Decides which requests join the running transcripts and when a transcript ends. Pure Python: it uses no torch, no device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.inference.loops import loop_start, num_repeated

if TYPE_CHECKING:
    import torch

LOOP_TOKENS = 64  # a phrase repeated over this many tokens is a loop: 13 s of speech at SmolLM3's rate
LOOP_TOKENS_PER_S = 12.5  # in a short clip, fewer are: so many a second, about nine words, are no speech
SHORTEST_LOOP_TOKENS = 16
LOOP_CHECK_EVERY = 8  # tokens
MAX_RETRIES = 4  # of a clip; each costs about LOOP_TOKENS


class Token(NamedTuple):
    """Holds what the decoder chose at one place of a text."""

    id: int
    logprob: float  # natural logarithm of its probability


@dataclass(frozen=True)
class Answer:
    """Holds the token ids that the decoder wrote, without the end of turn, and the log-probability of each.

    `looped` says that they repeated themselves without end, and were written again from there on. `complete` is False if they
    were cut off: at the longest transcript, or where they first looped, if they did so however they were written.
    """

    ids: list[int]
    logprobs: list[float]
    complete: bool
    looped: bool
    letters: torch.Tensor | None = None  # (E, classes) log-probabilities of what the model's CTC head heard, if it has one

    @property
    def tokens(self) -> list[Token]:
        """The ids and their log-probabilities, in pairs."""
        return list(map(Token, self.ids, self.logprobs))


@dataclass(eq=False)
class Request:
    """Follows a clip on its way to its transcript."""

    pcm: np.ndarray  # (S,) int16 at 16 kHz
    num_tokens: int  # positions of its prompt, including the audio
    max_new_tokens: int
    on_token: Callable[[Token], None] | None = None  # called with each token as it comes, on the engine's thread
    model: str | None = None  # the model that is asked, of those that share the backbones; None is the first
    future: Future[Answer] = field(default_factory=Future)
    slot: int = -1
    num_launched: int = 0  # tokens that the device has made or is making
    num_stale: int = 0  # of those that it is making, the first so many are of a text that was given up
    ids: list[int] = field(default_factory=list)  # tokens known to the host
    logprobs: list[float] = field(default_factory=list)  # theirs
    letters: torch.Tensor | None = None  # those of the answer; on their way to the host until the first token is known
    num_told: int = 0  # of them, the caller knows so many: not those that may prove to be a loop
    loop_starts: list[int] = field(default_factory=list)  # where it began to loop, each time that it did
    banned: dict[int, int] = field(default_factory=dict)  # the id that would begin a loop, by the place where it may not stand
    arrived_at: float = field(default_factory=time.monotonic)  # seconds of that clock, as the next two
    joined_at: float | None = None  # when it got its slot
    first_token_at: float | None = None  # when its first token was known

    @property
    def position(self) -> int:
        """Position of the newest token in the slot."""
        return self.num_tokens + self.num_launched - 1

    @property
    def loop_tokens(self) -> int:
        """The tokens over which a phrase must repeat itself to be a loop: those that can't be speech of the clip's length."""
        return max(SHORTEST_LOOP_TOKENS, min(LOOP_TOKENS, int(LOOP_TOKENS_PER_S * len(self.pcm) / SAMPLE_RATE)))

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def finish(self, complete: bool) -> None:
        self.tell(len(self.ids))
        with suppress(InvalidStateError):  # cancelled by its caller just now
            self.future.set_result(Answer(self.ids, self.logprobs, complete, bool(self.loop_starts), self.letters))

    def tell(self, num_ids: int) -> None:
        """Hands the first `num_ids` ids to the caller, if it wants them and does not know them yet."""
        for place in range(self.num_told, num_ids if self.on_token else 0):
            self.num_told = place + 1
            self.on_token(Token(self.ids[place], self.logprobs[place]))

    def retry_from(self, start: int) -> None:
        """Gives up the ids from `start` on, which repeat themselves, and forbids the first of them there."""
        self.num_stale = self.num_launched - len(self.ids)
        self.banned = {place: id for place, id in self.banned.items() if place < start} | {start: self.ids[start]}
        self.take_back(start)
        self.num_launched = start

    def take_back(self, start: int) -> None:
        """Removes the tokens from `start` on."""
        del self.ids[start:]
        del self.logprobs[start:]


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

    def take_token(self, request: Request, token: Token) -> bool:
        """Adds a token to a running request; returns whether the request ends there, finished or cancelled by its caller.

        A text that loops is written again from where it began to. If it loops time after time, it ends where it first did.
        """
        if request.future.cancelled():
            return True
        if request.num_stale:
            request.num_stale -= 1
            return False
        request.first_token_at = request.first_token_at or time.monotonic()
        if token.id == self.end_id:
            request.finish(complete=True)
            return True
        request.ids.append(token.id)
        request.logprobs.append(token.logprob)
        if request.on_token and not request.loop_starts:
            request.tell(len(request.ids) - num_repeated(request.ids))
        start = loop_start(request.ids, request.loop_tokens) if len(request.ids) % LOOP_CHECK_EVERY == 0 else None
        if start is not None:
            request.loop_starts.append(start)
            if len(request.loop_starts) <= MAX_RETRIES:
                request.retry_from(start)
                return False
            request.take_back(min(request.loop_starts))
        if start is not None or len(request.ids) == request.max_new_tokens:
            request.finish(complete=False)
        return request.future.done()
