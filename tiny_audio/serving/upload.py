"""The limits of uploads: the bytes of each, the bytes that all hold at once, and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tiny_audio.serving.errors import APIError, too_many_requests

FREE_BYTES = 64 << 10  # of an upload, which are held without a reservation
SMALL_BYTES = 1 << 20  # half a minute of WAV; uploads up to this size have a quarter of the memory to themselves
MIN_BYTES_PER_S = 16 << 10  # once the grace is over: an upload of 25 MiB may take 27 minutes
MEMORY_WAIT_S = 30.0
Receive = Callable[[], Awaitable[dict]]


class ClientGoneError(Exception):
    """The client closed the connection before it had sent its request."""


class Memory:
    """Counts the bytes that uploads hold. Who finds too few waits: the small ones, and the others, each in order of arrival."""

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes
        self.num_taken = 0
        self.given_back = asyncio.Event()
        self.turns = {"small": asyncio.Lock(), "large": asyncio.Lock()}

    async def take(self, num_bytes: int) -> None:
        """Reserves memory.

        Raises:
            APIError: there was not enough for MEMORY_WAIT_S.
        """
        size, limit = ("small", self.num_bytes) if num_bytes <= SMALL_BYTES else ("large", self.num_bytes * 3 // 4)
        try:
            async with asyncio.timeout(MEMORY_WAIT_S), self.turns[size]:
                while self.num_taken and self.num_taken + num_bytes > limit:
                    self.given_back.clear()
                    await self.given_back.wait()
                self.num_taken += num_bytes
        except TimeoutError:
            raise too_many_requests("too many uploads are in progress") from None

    def give_back(self, num_bytes: int) -> None:
        """Frees what `take` reserved."""
        self.num_taken -= num_bytes
        self.given_back.set()


class Uploads:
    """Receives the bodies of requests, whole, before anybody works on them: so a slow client holds nothing but its connection.

    Args:
        max_bytes: the largest body.
        max_held_bytes: what all bodies hold at once, each from its first FREE_BYTES until its request is answered.
        grace_s: how long a body may take whatever its rate.
    """

    def __init__(self, max_bytes: int, max_held_bytes: int, grace_s: float):
        self.max_bytes, self.grace_s = max_bytes, grace_s
        self.memory = Memory(max(max_held_bytes, max_bytes))

    @asynccontextmanager
    async def received(self, headers: dict[bytes, bytes], receive: Receive) -> AsyncIterator[list[bytes]]:
        """Receives a body; yields it in the pieces in which it came, and holds its memory until the context ends.

        Raises:
            APIError: the body is too large or too slow, or there is no memory for it.
            ClientGoneError: the client left.
        """
        announced_bytes = int(headers.get(b"content-length", b"0"))
        self._check(announced_bytes)
        held: list[int] = []
        try:
            yield await self._receive(receive, announced_bytes or self.max_bytes, held)
        finally:
            self.memory.give_back(sum(held))

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise APIError(413, f"the upload is over {self.max_bytes >> 20} MiB", "file_too_large", "file")

    async def _receive(self, receive: Receive, expected_bytes: int, held: list[int]) -> list[bytes]:
        """Receives a body; adds what it reserves to `held` at once, so that it is freed whatever happens."""
        now = asyncio.get_running_loop().time
        pieces, num_bytes, started = [], 0, now()
        try:
            async with asyncio.timeout(self.grace_s) as limit:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    pieces.append(message.get("body", b""))
                    num_bytes += len(pieces[-1])
                    self._check(num_bytes)
                    if not message.get("more_body", False):
                        return pieces
                    if num_bytes > FREE_BYTES and not held:
                        limit.reschedule(None)
                        asked = now()
                        await self.memory.take(expected_bytes)
                        held.append(expected_bytes)
                        started += now() - asked  # a wait of our making is not the client's
                    limit.reschedule(started + self.grace_s + num_bytes / MIN_BYTES_PER_S)
        except TimeoutError:
            slow = f"the upload is too slow: after {self.grace_s:g} s it needs {MIN_BYTES_PER_S >> 10} KiB a second"
            raise APIError(408, slow, "request_timeout", headers={"Connection": "close"}) from None
