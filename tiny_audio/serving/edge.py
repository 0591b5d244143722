"""What Serve's proxies do with a request before it reaches the application, and with an answer that Serve makes itself.

A proxy takes a request on only when it knows the caller and has the whole body. So a slow client costs a connection and no more,
memory has a limit, and a request whose replica dies before it answers is sent again.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import re
import uuid
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse

from tiny_audio.ray_names import NO_TIMEOUT, PROXY_HINTS
from tiny_audio.serving.arguments import EdgeSettings
from tiny_audio.serving.body import attached
from tiny_audio.serving.errors import RETRY_AFTER, APIError, too_many_requests, unavailable
from tiny_audio.serving.keys import Keys, presented_key
from tiny_audio.serving.paths import DRAIN_PATH, LOCAL_PATHS, OPEN_PATHS, path_of
from tiny_audio.serving.realtime.flow import Flow
from tiny_audio.serving.upload import FREE_BYTES, ClientGoneError, Receive, Uploads

REQUEST_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)
ANSWER_S = 90.0  # that any answer may take; Serve's configs have it as their request_timeout_s
BYTES_PER_S = 1 << 10  # of the thinnest speech, 8 kbit/s: the answer to an upload may take as long again as its audio lasts
RETRY_PAUSES_S = (0.2, 2.0)  # between attempts on replicas that died; not many, for a request might be what kills them
logger = logging.getLogger("ray.serve")
Send = Callable[[dict], Awaitable[None]]


class Edge:
    """Wraps a proxy's application, as ASGI middleware."""

    def __init__(self, app, settings: EdgeSettings):
        self.app, self.settings = app, settings
        self.keys = Keys(settings.api_keys)
        held_bytes = settings.max_held_mib << 20
        self.uploads = Uploads(settings.max_upload_mib << 20, held_bytes, settings.upload_grace_s)
        self.num_requests = 0  # passed on and not answered yet
        self.sessions: set[Flow] = set()
        self.is_draining = False

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        answer = Answer(send, scope)
        scope = tidied(scope, answer.request_id_of(scope))
        headers = dict(scope["headers"])
        try:
            if scope["type"] == "http" and path_of(scope) == DRAIN_PATH:
                self._drain(headers)
                await answer.json(200, {"proxy": os.getpid(), "in_progress": self.num_requests + len(self.sessions)})
                return
            self._require_open()
            require_local(scope)
            if scope["type"] == "http" and path_of(scope) in OPEN_PATHS:
                await self._pass_on(scope, [b""], receive, answer)
                return
            caller = self.keys.caller(headers)
            if scope["type"] == "websocket":
                self._require_known_page(headers)
                with caller.session():
                    await self._open(scope, receive, answer)
                return
            with caller.request():
                await self._take(scope, headers, receive, answer)
        except APIError as error:
            await answer.refuse(error)
        except ClientGoneError:
            pass
        except Exception:
            logger.exception("the edge failed")
            await answer.refuse(error_of_serve(None, path_of(scope)))

    async def _take(self, scope: dict, headers: dict[bytes, bytes], receive: Receive, answer: Answer) -> None:
        """Receives a request's body, then passes it on, unless too many are."""
        async with self.uploads.received(headers, receive) as body:
            self._require_open()  # it may have taken long
            if self.num_requests >= self.settings.max_requests:
                raise too_many_requests(f"{self.num_requests} requests are in progress")
            self.num_requests += 1
            try:
                await self._pass_on(with_time(scope, sum(map(len, body))), body, receive, answer)
            finally:
                self.num_requests -= 1

    def _require_open(self) -> None:
        if self.is_draining:
            raise unavailable("the service is about to end")

    def _require_known_page(self, headers: dict[bytes, bytes]) -> None:
        """Keeps other sites' pages out where no key does: browsers let any page open a WebSocket to this machine."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        own = origin.partition("://")[2].encode("latin-1") == headers.get(b"host")
        if origin and not self.keys.path and not own and origin not in self.settings.origins:
            raise APIError(403, f"pages of {origin} may not call; see cors_origins", "forbidden_origin")

    async def _open(self, scope: dict, receive: Receive, answer: Answer) -> None:
        """Has Serve open a realtime session, and stands between it and the client until it ends."""
        flow = Flow(receive, answer.send)
        self.sessions.add(flow)
        try:
            await self.app({**scope, "headers": [*scope["headers"], NO_TIMEOUT]}, flow.receive, flow.send)
        finally:
            self.sessions.discard(flow)
            await flow.close(unavailable("the session is lost, for what held it has ended"))
        if not flow.is_open:
            raise error_of_serve(flow.own_error, path_of(scope))

    async def _pass_on(self, scope: dict, body: list[bytes], receive: Receive, answer: Answer) -> None:
        """Has Serve answer a request, and asks again where a replica died before it began to answer."""
        for pause_s in (*RETRY_PAUSES_S, None):
            request, replay = attached(scope, body, receive)
            answer.own_error = None
            await self.app(request, replay.receive, answer.pass_on)
            if answer.has_begun or replay.is_gone:
                await answer.end()
                return
            if answer.own_error not in (None, 503) or pause_s is None:
                break
            await asyncio.sleep(pause_s)
        raise error_of_serve(answer.own_error, path_of(scope))

    def _drain(self, headers: dict[bytes, bytes]) -> None:
        """Takes on no more requests, and has the realtime sessions end."""
        token = self.settings.drain_token
        if not token or not hmac.compare_digest(presented_key(headers), token.encode()):
            raise error_of_serve(404, DRAIN_PATH)
        self.is_draining = True
        for session in self.sessions:
            session.end("the service is about to end")


def tidied(scope: dict, request_id: str) -> dict:
    """Returns a request's scope as the application takes it.

    HEAD becomes GET, a slash at the end goes, the id is there, and what Serve's own balancer tells its proxies is taken out:
    a client could switch off timeouts with it.
    """
    scope = dict(scope)
    unwanted = {b"x-request-id", *PROXY_HINTS}
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in unwanted]
    scope["headers"].append((b"x-request-id", request_id.encode()))
    scope["path"] = scope["path"].rstrip("/") or "/"
    scope["raw_path"] = scope.get("raw_path", b"").rstrip(b"/") or b"/"
    if scope.get("method") == "HEAD":
        scope["method"] = "GET"
    return scope


def with_time(scope: dict, num_bytes: int) -> dict:
    """Returns a request's scope with the time that Serve gives its answer, which grows with the upload."""
    timeout = (PROXY_HINTS[0], b"%.1f" % (ANSWER_S + num_bytes / BYTES_PER_S))
    return {**scope, "headers": [*scope["headers"], timeout]} if num_bytes > FREE_BYTES else scope


def require_local(scope: dict) -> None:
    """Raises an APIError, as for a path that does not exist, where somebody elsewhere asks for one of LOCAL_PATHS."""
    client = (scope.get("client") or ("",))[0]
    if path_of(scope) in LOCAL_PATHS and not (client and ipaddress.ip_address(client).is_loopback):
        raise error_of_serve(404, path_of(scope))


def error_of_serve(status: int | None, path: str) -> APIError:
    """Returns the error for a status with which Serve answered by itself, in plain text, or for None, which is no answer."""
    match status:
        case 404:
            return APIError(404, f"nothing is at {path}", "not_found")
        case 408:
            return APIError(504, "the service took too long to answer", "timeout")
        case 429:
            return too_many_requests("too many requests are waiting")
        case 503:
            return unavailable("the service is starting or restarting")
    return APIError(500, "the service failed; its log says why", "internal_error", headers=RETRY_AFTER)


class Answer:
    """Sends an answer to the client with the request's id, and keeps back what Serve says by itself."""

    def __init__(self, send: Send, scope: dict):
        self._send, self.scope, self.head_only = send, scope, scope.get("method") == "HEAD"
        self.request_id = ""
        self.has_begun = self.is_whole = self.is_stream = False
        self.own_error: int | None = None  # status of an answer that Serve made itself

    def request_id_of(self, scope: dict) -> str:
        """Returns the id that the client gave its request, or else a new one."""
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        return self.request_id

    async def send(self, message: dict) -> None:
        """Sends an ASGI message."""
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            self.is_stream = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self.is_whole = not message.get("more_body", False)
            message = {**message, "body": b""} if self.head_only else message
        await self._send(message)

    async def pass_on(self, message: dict) -> None:
        """Sends the application's messages; of an error in plain text, which is Serve's own, it only keeps the status."""
        if message["type"] == "http.response.start":
            is_text = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/plain")
            self.own_error = int(message["status"]) if int(message["status"]) >= 400 and is_text else None
        if self.own_error is None:
            await self.send(message)

    async def end(self) -> None:
        """Ends a stream of events whose replica died: its client would wait for ever."""
        if self.is_stream and not self.is_whole:
            body = f"data: {json.dumps(error_of_serve(None, '').body)}\n\n".encode()
            await self.send({"type": "http.response.body", "body": body})

    async def json(self, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
        """Sends a JSON answer of the edge's own; to a WebSocket, instead of opening it."""
        await JSONResponse(body, status, headers)(self.scope, None, self.send)

    async def refuse(self, error: APIError) -> None:
        """Tells the client of an error; a WebSocket does not open then."""
        if not self.has_begun:
            await self.json(error.status_code, error.body, error.headers)
