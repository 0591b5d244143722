"""How the body of a request travels from a proxy's edge, which has received it whole, to an ingress.

Serve's way is a call of the ingress back to the proxy, whose answer goes through the object store. A small body is spared that:
it goes along with the request itself, in the ASGI scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tiny_audio.serving.upload import SMALL_BYTES, Receive

BODY = "tiny_audio.body"  # its key in the scope


class Replay:
    """Gives a body that was received to the application, then waits until the client leaves."""

    def __init__(self, body: list[bytes], receive: Receive):
        self.rest, self._receive = list(reversed(body)), receive
        self.is_gone = False

    async def receive(self) -> dict:
        """Returns the next ASGI message."""
        if self.rest:
            return {"type": "http.request", "body": self.rest.pop(), "more_body": bool(self.rest)}
        while (message := await self._receive())["type"] == "http.request":
            pass  # of a request without a body, its end
        self.is_gone = True
        return message


def attached(scope: dict, body: list[bytes], receive: Receive) -> tuple[dict, Replay]:
    """Returns the scope and the messages with which Serve gets a request: a small body is in the scope, a large one behind it."""
    scope = {**scope, "headers": list(scope["headers"])}
    if sum(map(len, body)) > SMALL_BYTES:
        return scope, Replay(body, receive)
    return scope | {BODY: b"".join(body)}, Replay([], receive)


class Detach:
    """Gives the application a body that came in the scope as if it came behind it, as ASGI middleware of an ingress."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict, receive: Receive, send: Callable) -> None:
        body = scope.pop(BODY, None)
        await self.app(scope, receive if body is None else Replay([body], receive).receive, send)
