"""What ends a realtime session or holds its client back: the real session and flow, on queues in the place of a network."""

import asyncio
import json

import pytest

from tests.serving.realtime.test_session import COMMIT, MANUAL, OFFER, append, as_pcm, silence
from tiny_audio.monitoring import metrics
from tiny_audio.monitoring.recorder import Recorder
from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.errors import unavailable
from tiny_audio.serving.model_calls import ModelCalls
from tiny_audio.serving.realtime.flow import END, HEARD, MAX_AHEAD_BYTES, Flow
from tiny_audio.serving.realtime.socket import Realtime

SCOPE = {"type": "websocket", "query_string": b"intent=transcription", "subprotocols": []}
CONNECT, LEAVE = {"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}


def text(event: dict) -> dict:
    return {"type": "websocket.receive", "text": json.dumps(event)}


async def talked(realtime: Realtime, *messages: dict) -> list[dict]:
    """Sends a session messages; returns its events and its close once it has ended."""
    queue, sent = asyncio.Queue(), []
    for message in (CONNECT, *messages):
        queue.put_nowait(message)

    async def send(message: dict) -> None:
        sent.append(json.loads(message["text"].encode()) if "text" in message else message)

    async with asyncio.timeout(20):
        await realtime(SCOPE, queue.get, send)
    return sent


def realtime(**args) -> Realtime:
    """Makes an endpoint whose model is broken."""
    args = Arguments(model="m", **args)
    return Realtime(ModelCalls(None, args.timeout_s), OFFER, args)


@pytest.mark.parametrize(
    ("args", "messages", "code", "says"),
    [
        ({"session_idle_s": 0.2}, [], "session_idle", "0.2 s"),
        ({"session_s": 0.2}, [], "session_expired", "0.2 s"),
        ({}, [{"type": END, "message": "the service is about to end"}], "unavailable", "about to end"),
    ],
)
def test_a_session_that_ends_says_why(args, messages, code, says):
    *_, error, close = asyncio.run(talked(realtime(**args), *messages))
    assert error["error"]["code"] == code
    assert says in error["error"]["message"]
    assert (close["type"], close["code"], close["reason"]) == ("websocket.close", 1000, code)


def test_an_item_that_has_no_text_fails_once_and_the_session_goes_on(monkeypatch):
    counted = []
    monkeypatch.setattr(Recorder, "add", lambda self, metric, value, **labels: counted.append((metric, labels)))
    monkeypatch.setattr(Recorder, "observe", lambda self, metric, value, **labels: counted.append((metric, value < 5)))
    speech = text(append(as_pcm(silence(1))))
    sent = asyncio.run(talked(realtime(session_idle_s=1.0), text(MANUAL), *[speech, text(COMMIT)] * 3))
    failed = [event for event in sent if event["type"].endswith("transcription.failed")]
    committed = [event for event in sent if event["type"].endswith("committed")]
    assert [event["item_id"] for event in failed] == [event["item_id"] for event in committed]
    assert len(failed) == 3
    assert failed[0]["error"]["code"] == "internal_error"
    assert sent[-2]["error"]["code"] == "session_idle"
    of_item = [(metrics.ITEMS, {"outcome": "internal_error"}), (metrics.ITEM_S, True)]
    assert counted == [*of_item * 3, (metrics.SESSIONS_ENDED, {"reason": "session_idle"})]


def test_what_is_no_unicode_is_an_error_like_others():
    sent = asyncio.run(talked(realtime(), text({"type": "x", "event_id": "\ud800"}), LEAVE))
    assert (sent[-1]["error"]["event_id"], sent[-1]["error"]["param"]) == ("\ud800", "type")


def test_no_more_sessions_than_there_are_places():
    async def talk():
        endpoint, queue = realtime(max_sessions=1), asyncio.Queue()
        queue.put_nowait(CONNECT)

        async def send(message: dict) -> None:
            pass

        first = asyncio.create_task(endpoint(SCOPE, queue.get, send))
        await asyncio.sleep(0.05)
        refused = await talked(endpoint)
        queue.put_nowait(LEAVE)
        await first
        return refused, await talked(endpoint, LEAVE)

    refused, after = asyncio.run(talk())
    assert (refused[0]["type"], refused[0]["status"]) == ("websocket.http.response.start", 429)
    assert json.loads(refused[1]["body"])["error"]["code"] == "rate_limit_exceeded"
    assert after[1]["type"] == "session.created"


def test_a_client_is_held_back_until_its_session_has_heard_it():
    """One that sends faster than it is heard, and one that does not read."""

    async def talk():
        readable, read = asyncio.Queue(), asyncio.Event()
        read.set()

        async def send(message: dict) -> None:
            await read.wait()

        flow = Flow(readable.get, send)
        for _ in range(3):
            readable.put_nowait({"type": "websocket.receive", "text": "x" * MAX_AHEAD_BYTES})
        await flow.receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flow.receive(), 0.05)
        await flow.send({"type": HEARD, "num_bytes": MAX_AHEAD_BYTES})
        await asyncio.wait_for(flow.receive(), 5)
        await flow.send({"type": HEARD, "num_bytes": MAX_AHEAD_BYTES})
        read.clear()
        sending = asyncio.create_task(flow.send({"type": "websocket.send", "text": "x"}))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flow.receive(), 0.05)
        read.set()
        await sending
        await asyncio.wait_for(flow.receive(), 5)

    asyncio.run(talk())


def test_a_session_that_is_lost_says_so():
    async def talk():
        sent = []

        async def send(message: dict) -> None:
            sent.append(message)

        flow = Flow(asyncio.Queue().get, send)
        await flow.send({"type": "websocket.accept"})
        await flow.close(unavailable("lost"))
        await flow.close(unavailable("lost"))
        return sent

    _, error, close = asyncio.run(talk())
    assert json.loads(error["text"])["error"]["code"] == "unavailable"
    assert (close["type"], close["code"]) == ("websocket.close", 1011)
