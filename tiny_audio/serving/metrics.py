"""What Prometheus and the logs are told of the service: of each answer, and of each clip in a replica. No audio, and no text."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from ray import serve

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.inference.scheduler import Request, Scheduler
from tiny_audio.monitoring import metrics
from tiny_audio.monitoring.recorder import Recorder
from tiny_audio.serving.autoscaling import AUDIO_S, CLIPS

LOG = logging.getLogger("ray.serve")  # in replicas, Serve adds the request's id to its lines
OPENED = 101  # HTTP's status of a WebSocket that is open
CLIENT_GONE = 499  # nginx's number for a client that left before its answer began
LONGEST_ERROR = 4096  # bytes of an answer in which an error's code is looked for


class AnswerMonitor:
    """Counts and times every HTTP answer, and logs why a request was refused, as the outermost ASGI middleware.

    The answer to a WebSocket, which is counted when it ends, is 101, or the refusal.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app, self.recorder = app, Recorder()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started, status, request_id, body = time.monotonic(), CLIENT_GONE, b"", b""

        async def watched(message: dict) -> None:
            nonlocal status, request_id, body
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status, request_id = message.get("status", OPENED), dict(message.get("headers", ())).get(b"x-request-id", b"")
            if status >= 400:
                body = (body + message.get("body", b""))[:LONGEST_ERROR]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500  # as the server makes of it
            raise
        finally:
            outcome, seconds = outcome_of(status, body), time.monotonic() - started
            self.recorder.add(metrics.REQUESTS, 1, status=str(status), outcome=outcome)
            if scope["type"] == "http":
                self.recorder.observe(metrics.REQUEST_S, seconds)
            if status >= 400:
                told = (request_id.decode("latin-1"), scope.get("method", "WebSocket"), scope["path"], status, outcome, seconds)
                LOG.warning("request %s: %s %r refused: %d %s after %.3f s", *told)


def outcome_of(status: int, body: bytes) -> str:
    """Returns the code of an error in OpenAI's shape; ok where there is none, and the status where it has no such shape."""
    if status < 400:
        return "ok"
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return {CLIENT_GONE: "client_gone", 500: "internal_error"}.get(status, str(status))


class ClipMonitor:
    """Counts and times the clips of one replica.

    Args:
        scheduler: that of its engine.
        load_s: how long the replica took to have its model and try it.
        fallback: why the engine runs without CUDA graphs; empty where it has them, or none are due.
    """

    def __init__(self, scheduler: Scheduler, load_s: float, fallback: str):
        self.requests: set[Request] = set()  # that have no answer yet
        self.scheduler, self.recorder = scheduler, Recorder(replica=serve.get_replica_context().replica_id.unique_id)
        self.recorder.set(metrics.MODEL_LOAD_S, load_s)
        self.recorder.set(metrics.WITHOUT_GRAPHS, float(bool(fallback)))
        self.recorder.set(metrics.SLOTS, scheduler.num_slots)
        self.recorder.set(metrics.SLOTS_IN_USE, lambda: len(scheduler.live))
        self.recorder.set(metrics.QUEUED_S, lambda: sum(len(request.pcm) for request in list(scheduler.waiting)) / SAMPLE_RATE)

    def in_hand(self) -> dict[str, float]:
        """Returns the number of clips that have no transcript yet, and their seconds of audio, for `AudioPolicy`."""
        audio_s = sum(len(request.pcm) for request in self.requests) / SAMPLE_RATE
        return {AUDIO_S: audio_s, CLIPS: len(self.requests)}

    def judged(self, doubtful: bool) -> None:
        """Counts a text that the model's CTC head doubts."""
        self.recorder.add(metrics.DOUBTFUL, doubtful)

    @contextmanager
    def clip(self, request: Request) -> Iterator[None]:
        """Counts a clip that was given to the engine; the context lasts until its transcript is there, or is given up."""
        duration_s = len(request.pcm) / SAMPLE_RATE
        self.recorder.add(metrics.AUDIO_IN_S, duration_s)
        self.requests.add(request)
        try:
            yield
        except BaseException as error:  # its caller left, too
            LOG.warning(
                "clip of %.2f s: %s after %.3f s", duration_s, type(error).__name__, time.monotonic() - request.arrived_at
            )
            raise
        finally:
            self.requests.discard(request)
        queue_s, first_token_s = request.joined_at - request.arrived_at, request.first_token_at - request.arrived_at
        self.recorder.add(metrics.TRANSCRIBED_S, duration_s)
        answer = request.future.result()
        outcome = ("mended" if answer.looped else "whole") if answer.complete else "cut"
        self.recorder.add(metrics.ENDED, 1, outcome=outcome)
        self.recorder.add(metrics.TOKENS, len(answer.ids) + answer.complete)  # the end is a token too
        self.recorder.observe(metrics.QUEUE_S, queue_s)
        self.recorder.observe(metrics.FIRST_TOKEN_S, first_token_s)
        self.recorder.observe(metrics.BATCH, 1 + len(self.scheduler.live))
        LOG.info(
            "clip of %.2f s: queued %.3f s, first token after %.3f s, %d tokens after %.3f s: %s",
            *(duration_s, queue_s, first_token_s, len(answer.ids), time.monotonic() - request.arrived_at, outcome),
        )
