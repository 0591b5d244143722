"""HTTP/1.1 as Serve's proxies speak it: uvicorn's, with errors in OpenAI's shape and a limit on slow request heads."""

from __future__ import annotations

import asyncio
import json
import uuid
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import Response

from tiny_audio.serving.errors import error_body

HEAD_S = 20.0  # how long the first line and the headers of a request may take


def refusal(status: int, message: str) -> Response:
    """Returns the error in OpenAI's shape for what is no request, and closes its connection."""
    status = HTTPStatus(status)
    body = json.dumps(error_body(status, message, status.name.lower())).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    return Response(status.value, status.phrase, Headers(headers | {"x-request-id": str(uuid.uuid4())}), body)


class Protocol(H11Protocol):
    """Answers what is no request, and closes connections whose request does not come.

    uvicorn prefers httptools, which loses the body of a request with `Upgrade: h2c`; Java's client sends that by default.
    """

    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not a valid HTTP request")

    def _watch_head(self) -> None:
        """Starts the timer where a head is awaited and none runs yet; stops it where a request has begun."""
        if self.conn.their_state is not h11.IDLE or self.conn.our_state is not h11.IDLE:
            self._unwatch_head()
        elif not self.head_timer:
            self.head_timer = self.loop.call_later(HEAD_S, self._refuse, 408, "the request did not come")

    def _unwatch_head(self) -> None:
        if self.head_timer:
            self.head_timer.cancel()
            self.head_timer = None

    def _refuse(self, status: int, message: str) -> None:
        """Answers with an error and closes the connection; only closes it where an answer is already under way."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(refusal(status, message).serialize())
        self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """Answers a wrong handshake in OpenAI's shape. Ends the WebSocket of a client that answers no ping, and drops what it did not
    read: uvicorn would wait for it for ever."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.conn.reject = lambda status, text: refusal(status, text.partition("\n")[0])

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()
