"""Realtime sessions over WebSockets: what waits, for the client, the detector and the model, while `Session` decides."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from urllib.parse import parse_qs

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.windows import Window, whole_clip, window_samples, windows
from tiny_audio.monitoring import metrics
from tiny_audio.monitoring.recorder import Recorder
from tiny_audio.serving.answers import Segment, Transcription
from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.errors import APIError, too_many_requests
from tiny_audio.serving.failures import as_api_error
from tiny_audio.serving.model_calls import ModelCalls
from tiny_audio.serving.offer import Offer
from tiny_audio.serving.pieces import Piece, as_logprobs
from tiny_audio.serving.realtime.events import completed_event, delta_event, error_event, failed_event
from tiny_audio.serving.realtime.flow import CLOSED_BY_US, END, HEARD, MAX_AHEAD_BYTES, num_bytes
from tiny_audio.serving.realtime.listener import Listener
from tiny_audio.serving.realtime.session import Session, Turn

SUBPROTOCOL = "realtime"  # what browsers offer, beside one that carries the key
MAX_TURNS = 8  # of a session that wait for their text; with more, the client is held back
LARGE_EVENT = 128 << 10  # characters; 2 s of PCM take a millisecond to decode, and minutes may come in one event
logger = logging.getLogger("ray.serve")


class Realtime:
    """Answers WebSockets, as an ASGI application. Turns go to the model's replicas as uploads do, but no more at a time than
    fill their slots, together with those of other ingresses: uploads find places in the queue."""

    def __init__(self, model: ModelCalls, offer: Offer, args: Arguments):
        self.model, self.offer, self.args = model, offer, args
        self.listener = Listener()
        self.slots = asyncio.Semaphore(max(1, args.slots_per_ingress))
        self.num_sessions = 0
        self.recorder = Recorder()
        self.recorder.set(metrics.SESSIONS, lambda: self.num_sessions)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if self.num_sessions >= self.args.max_sessions:
            refusal = too_many_requests(f"{self.num_sessions} realtime sessions are open")
            await refusal.response()(scope, receive, send)
            return
        self.num_sessions += 1
        try:
            await Connection(self, receive, send).run(scope)
        finally:
            self.num_sessions -= 1

    async def windows(self, turn: Turn) -> list[Window]:
        """Returns the windows of a turn: itself, if the model takes it whole; none where nothing was said."""
        max_duration_s = await self.model.max_duration_s()
        if len(turn.pcm) > max_duration_s * SAMPLE_RATE:
            return await asyncio.to_thread(lambda: list(windows([turn.pcm], window_samples(max_duration_s), VadConfig())))
        return await asyncio.to_thread(whole_clip, turn.pcm, not turn.is_speech, VadConfig())

    async def pieces(self, clip: np.ndarray, model: str | None) -> AsyncIterator[Piece | dict]:
        """Yields the text of a clip as `ModelCalls.pieces` does, but waits where the replicas are full: a client that speaks
        cannot ask again."""
        try:
            async with asyncio.timeout(self.args.timeout_s):
                await self.slots.acquire()
        except TimeoutError as error:
            raise as_api_error(error) from None
        try:
            async with aclosing(self.model.pieces(clip, model, waits_in_line=True)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.slots.release()


class Connection:
    """Holds one client's WebSocket, its session, and the turns that wait for their text, which they get in order."""

    def __init__(self, realtime: Realtime, receive: Callable, send: Callable):
        self.realtime, self.args = realtime, realtime.args
        self._receive, self._send = receive, send
        self.turns: asyncio.Queue[Turn] = asyncio.Queue(MAX_TURNS)
        self.num_turns = 0
        self.num_taken = 0  # bytes of the client that the edge does not know to be taken

    async def run(self, scope: dict) -> None:
        """Talks with the client until it leaves, a limit is reached, or the service ends."""
        await self._receive()  # websocket.connect
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        writer, began, reason = asyncio.create_task(self._transcribe()), time.monotonic(), "client_gone"
        try:
            await self._talk(parse_qs(scope["query_string"].decode("latin-1")))
        except APIError as error:  # the session ends, and the client is told why, once its items have their texts
            reason = error.code
            await self.turns.join()
            await self._say(error_event(error))
            await self._send({"type": "websocket.close", "code": CLOSED_BY_US, "reason": error.code})
        except Exception as error:
            reason = "internal_error"
            logger.exception("a realtime session failed")
            await self._say(error_event(as_api_error(error)))
            await self._send({"type": "websocket.close", "code": 1011, "reason": "internal_error"})
        finally:
            writer.cancel()
            self.realtime.recorder.add(metrics.SESSIONS_ENDED, 1, reason=reason)
            logger.info("realtime session of %.1f s with %d turns ended: %s", time.monotonic() - began, self.num_turns, reason)

    async def _talk(self, query: dict[str, list[str]]) -> None:
        """Returns when the client has left.

        Raises:
            APIError: the session is over.
        """
        if query.get("intent", ["transcription"]) != ["transcription"]:
            raise APIError(400, "intent: this service transcribes; take intent=transcription", "invalid_value", "intent")
        session = Session(self.realtime.offer, query.get("model", [None])[0], int(time.time() + self.args.session_s))
        await self._say(session.created())
        loop = asyncio.get_running_loop()
        until = loop.time() + self.args.session_s
        while True:
            idle_until = loop.time() + self.args.session_idle_s
            try:
                async with asyncio.timeout_at(min(until, idle_until)):
                    message = await self._receive()
            except TimeoutError:
                if loop.time() >= until:
                    raise APIError(400, f"a session lasts {self.args.session_s:g} s at most", "session_expired") from None
                raise APIError(400, f"nothing came for {self.args.session_idle_s:g} s", "session_idle") from None
            match message["type"]:
                case "websocket.disconnect":
                    return
                case kind if kind == END:
                    raise APIError(503, message["message"], "unavailable")
            await self._take(session, message)

    async def _take(self, session: Session, message: dict) -> None:
        """Takes one event of the client, and has the detector hear what it brings."""
        text = message.get("text") or (message.get("bytes") or b"").decode(errors="replace")
        if len(text) > LARGE_EVENT:
            await self._answer(session, await asyncio.to_thread(lambda: list(session.receive(text))))
        else:
            await self._answer(session, session.receive(text))
        while (samples := session.unheard()) is not None:
            await self._answer(session, session.heard(*await self.realtime.listener.hear(samples, session.vad_state)))
        self.num_taken += num_bytes(message)
        if self.num_taken > MAX_AHEAD_BYTES // 4:
            await self._send({"type": HEARD, "num_bytes": self.num_taken})
            self.num_taken = 0

    async def _answer(self, session: Session, events) -> None:
        for event in events:
            await self._say(event)
        while session.turns:
            await self.turns.put(session.turns.pop(0))
            self.num_turns += 1

    async def _say(self, event: dict) -> None:
        await self._send({"type": "websocket.send", "text": json.dumps(event)})  # in ASCII: what clients send may be no Unicode

    async def _transcribe(self) -> None:
        """Gives each item that is committed its text, or says why it has none: one of the two, once."""
        recorder = self.realtime.recorder
        while True:
            turn, outcome = await self.turns.get(), "ok"
            try:
                transcription = await self._transcription(turn)
                logprobs = transcription.logprobs if turn.with_logprobs else None
                await self._say(completed_event(turn.item_id, transcription.text, logprobs, transcription.usage))
            except Exception as error:
                if not isinstance(error, APIError):
                    logger.exception("a turn failed")
                told = as_api_error(error)
                outcome = told.code
                await self._say(failed_event(turn.item_id, told))
            self.turns.task_done()
            recorder.add(metrics.ITEMS, 1, outcome=outcome)
            recorder.observe(metrics.ITEM_S, time.monotonic() - turn.committed_at)

    async def _transcription(self, turn: Turn) -> Transcription:
        """Transcribes a turn, window by window, and sends the text as it is written."""
        transcription = Transcription([], len(turn.pcm) / SAMPLE_RATE, "")
        for window in await self.realtime.windows(turn):
            space = " " if transcription.text else ""
            async for piece in self.realtime.pieces(window.pcm, turn.model):
                if isinstance(piece, Piece):
                    logprobs = as_logprobs(piece.tokens) if turn.with_logprobs else None
                    await self._say(delta_event(turn.item_id, space + piece.text, logprobs))
                    space = ""
                else:
                    stop_s = window.offset_s + len(window.pcm) / SAMPLE_RATE
                    transcription.segments.append(Segment(window.offset_s, stop_s, piece, []))
        return transcription
