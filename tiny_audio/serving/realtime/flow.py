"""A realtime session as the edge sees it. Messages of our own go between edge and session, past Serve, which passes on any.

Serve's queues have no end, so the edge holds a client back itself: one that sends faster than its session hears, and one that
does not take what it is sent. TCP tells the client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tiny_audio.serving.errors import APIError
from tiny_audio.serving.realtime.events import error_event
from tiny_audio.serving.upload import Receive

HEARD = "tiny_audio.heard"  # from the session: it has taken `num_bytes` more
END = "tiny_audio.end"  # to the session: it shall end, and say `message`
MAX_AHEAD_BYTES = 1 << 20  # 16 s of PCM in base64
CLOSED_BY_US, FAILED = 1000, 1011  # codes of WebSocket


def num_bytes(message: dict) -> int:
    """Returns the length of a client's message, as it counts for HEARD."""
    return len(message.get("text") or message.get("bytes") or "")


def _never() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


class Flow:
    """Stands between one client's WebSocket and its session."""

    def __init__(self, receive: Receive, send: Callable[[dict], Awaitable[None]]):
        self._receive, self._send = receive, send
        self.num_ahead = 0  # bytes that the session has not taken yet
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.is_open = self.is_closed = self.is_sending = False
        self.own_error: int | None = None  # status of an answer that Serve made itself
        self._ending = _never()
        self._coming: asyncio.Future[dict] | None = None  # the client's next message

    async def receive(self) -> dict:
        """Returns the next ASGI message for the session."""
        await self.may_go_on.wait()
        coming = self._coming or asyncio.ensure_future(self._receive())
        self._coming = coming
        await asyncio.wait({coming, self._ending}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            message, self._ending = self._ending.result(), _never()
            return {"type": END, "message": message}
        self._coming = None
        message = coming.result()
        self.is_closed |= message["type"] == "websocket.disconnect"
        self.num_ahead += num_bytes(message)
        self._hold_back()
        return message

    async def send(self, message: dict) -> None:
        """Sends an ASGI message of the session; of what Serve answers by itself, it only keeps the status."""
        match message["type"]:
            case kind if kind == HEARD:
                self.num_ahead -= message["num_bytes"]
                self._hold_back()
                return
            case "http.response.start":
                self.own_error = int(message["status"])
                return
            case "http.response.body":
                return
            case "websocket.close" if not self.is_open:
                self.own_error = 404  # no route is there
                return
        self.is_open |= message["type"] in ("websocket.accept", "websocket.http.response.start")
        self.is_closed |= message["type"] in ("websocket.close", "websocket.http.response.start")
        self.is_sending = True
        self._hold_back()
        with suppress(OSError):  # the client has left: the next message that is received says so
            await self._send(message)
        self.is_sending = False
        self._hold_back()

    def _hold_back(self) -> None:
        if self.is_sending or self.num_ahead >= MAX_AHEAD_BYTES:
            self.may_go_on.clear()
        else:
            self.may_go_on.set()

    def end(self, message: str) -> None:
        """Has the session end once its items have their texts."""
        self._ending.set_result(message)

    async def close(self, error: APIError) -> None:
        """Tells the client that its session is lost, unless it knows that it has ended."""
        if self._coming:
            self._coming.cancel()
        if self.is_open and not self.is_closed:
            await self.send({"type": "websocket.send", "text": json.dumps(error_event(error))})
            await self.send({"type": "websocket.close", "code": FAILED, "reason": error.code})
