"""Realtime sessions over real WebSockets, with OpenAI's own client, against the service that the other tests use."""

import asyncio
import base64
import json
import random

import numpy as np
import openai
import pytest
import websockets

from tests.serving.conftest import audio_file, transcribe
from tests.serving.realtime.test_session import PCM_RATE, RATE, as_pcm, silence
from tests.serving.test_change import kill
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize

SENTENCES = ("an elephant snored", "she knew the port and the hill")
TEXT = "conversation.item.input_audio_transcription."
ENDED = {f"{TEXT}completed", f"{TEXT}failed"}
PIECE = PCM_RATE * 2 // 10  # 100 ms


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    return [synthesize(text, held_out_voices()[i], random.Random(i)) for i, text in enumerate(SENTENCES)]


@pytest.fixture(scope="module")
def texts(client, spoken) -> list[str]:
    """What uploads of the same sound are answered."""
    return [transcribe(client, audio_file(pcm / 32768, RATE)).text for pcm in spoken]


def session(client: openai.OpenAI, key: str = "key-of-tests", **options):
    """Opens a session with OpenAI's asynchronous client."""
    own = openai.AsyncOpenAI(base_url=client.base_url, api_key=key)
    return own.realtime.connect(**({"extra_query": {"intent": "transcription"}} | options))


async def append(connection, data: bytes) -> None:
    for start in range(0, len(data), PIECE):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + PIECE]).decode())


async def until(connection, *kinds: str, number: int = 1) -> list:
    """Receives events up to the `number`th of these kinds."""
    events = []
    async with asyncio.timeout(60):
        while sum(event.type in kinds for event in events) < number:
            events.append(await connection.recv())
    return events


async def set_up(connection, include=(), **of_input):
    await connection.session.update(session={"type": "transcription", "audio": {"input": of_input}, "include": list(include)})
    return (await until(connection, "session.updated", "error"))[-1]


def test_turns_are_heard_and_written_as_they_come(client, spoken):
    async def talk():
        async with session(client) as connection:
            updated = await set_up(
                connection, format={"type": "audio/pcm", "rate": PCM_RATE}, transcription={"model": "whisper-1"}
            )
            assert updated.session.type == "transcription"
            assert updated.session.audio.input.turn_detection.type == "server_vad"
            said = np.concatenate([silence(1), spoken[0], silence(1.5), spoken[1], silence(1.5)])
            await append(connection, as_pcm(said))
            return await until(connection, *ENDED, number=2)

    events = asyncio.run(talk())
    of_turns = ("speech_started", "speech_stopped", "committed")
    kinds = [*(f"input_audio_buffer.{kind}" for kind in of_turns), f"{TEXT}completed"]
    started, stopped, committed, done = ([event for event in events if event.type == kind] for kind in kinds)
    assert len(started) == len(stopped) == len(committed) == len(done) == 2
    for of_item in zip(started, stopped, committed, done, strict=True):
        (item_id,) = {event.item_id for event in of_item}
        deltas = [event.delta for event in events if event.type == f"{TEXT}delta" and event.item_id == item_id]
        assert len(deltas) > 1
        assert "".join(deltas) == of_item[-1].transcript
    assert committed[1].previous_item_id == committed[0].item_id
    assert 600 < started[0].audio_start_ms < 1100 < stopped[0].audio_end_ms < started[1].audio_start_ms


def test_what_the_client_commits_has_the_text_of_an_upload(client, spoken, texts):
    async def talk():
        async with session(client, model="tiny_audio", extra_query={}) as connection:
            await set_up(connection, turn_detection=None)
            done = []
            for pcm in spoken:
                await append(connection, as_pcm(pcm))
                await connection.input_audio_buffer.commit()
                done.append((await until(connection, *ENDED))[-1])
            await append(connection, as_pcm(silence(2)))
            await connection.input_audio_buffer.commit()
            return [*done, (await until(connection, *ENDED))[-1]]

    done = asyncio.run(talk())
    assert [event.type for event in done] == [f"{TEXT}completed"] * 3
    # The way from 16 kHz to 24 and back changes the last bits, which this untrained model may hear.
    assert sum(event.transcript == text for event, text in zip(done, texts, strict=False)) >= 1
    assert done[0].usage.input_token_details.audio_tokens == pytest.approx(len(spoken[0]) / 640, abs=1)
    assert done[2].transcript == ""  # nobody spoke, so nothing was decoded
    assert done[2].usage.total_tokens == 0


def test_a_turn_longer_than_the_model_takes_is_cut_at_its_pauses_and_its_tokens_have_their_log_probabilities(client, spoken):
    async def talk():
        async with session(client) as connection:
            await set_up(connection, include=["item.input_audio_transcription.logprobs"], turn_detection=None)
            said = np.concatenate([np.concatenate([pcm, silence(0.4)]) for pcm in spoken * 5])
            assert len(said) > 10 * RATE
            await append(connection, as_pcm(said))
            await connection.input_audio_buffer.commit()
            return await until(connection, *ENDED)

    events = asyncio.run(talk())
    assert events[-1].type == f"{TEXT}completed"
    *deltas, done = (event for event in events if event.type.startswith(TEXT))
    assert "".join(event.delta for event in deltas) == done.transcript
    assert [one for event in deltas for one in event.logprobs] == done.logprobs
    assert "".join(one.token for one in done.logprobs).replace(" ", "") == done.transcript.replace(" ", "")


def test_mistakes_are_answered_and_the_session_lives(client):
    async def talk():
        async with session(client) as connection:
            await until(connection, "session.created")
            await connection.send({"type": "input_audio_buffer.commit", "event_id": "mine"})
            (error,) = await until(connection, "error")
            refused = await set_up(connection, turn_detection={"type": "semantic_vad"})
            await connection.input_audio_buffer.clear()
            await until(connection, "input_audio_buffer.cleared")
            return error.error, refused.error

    empty, refused = asyncio.run(talk())
    assert (empty.code, empty.event_id) == ("input_audio_buffer_commit_empty", "mine")
    assert refused.param == "session.audio.input.turn_detection.type"


def socket(url: str, path: str = "/v1/realtime?intent=transcription", **options):
    return websockets.connect(url.replace("http", "ws", 1) + path, **options)


def test_browsers_bring_their_key_as_a_subprotocol(url):
    async def talk():
        offers = ["realtime", "openai-insecure-api-key.key-of-tests", "openai-beta.realtime-v1"]
        async with socket(url, subprotocols=offers, origin="https://anywhere.example") as connection:
            assert connection.subprotocol == "realtime"
            assert connection.response.headers["x-request-id"]
            return json.loads(await connection.recv())["type"]

    assert asyncio.run(talk()) == "session.created"


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/v1/realtime", "wrong", 401),
        ("/v1/realtime", "", 401),
        ("/v1/other", "key-of-tests", 404),
        ("/healthz", "key-of-tests", 404),
    ],
)
def test_what_does_not_open_says_why(url, path, key, status):
    async def talk():
        async with socket(url, path, additional_headers={"Authorization": f"Bearer {key}"}):
            pass

    with pytest.raises(websockets.InvalidStatus) as caught:
        asyncio.run(talk())
    assert caught.value.response.status_code == status
    assert set(json.loads(caught.value.response.body)["error"]) == {"message", "type", "param", "code"}
    assert caught.value.response.headers["x-request-id"]


@pytest.mark.parametrize("query", [{"intent": "conversation"}, {"intent": "transcription", "model": "x"}])
def test_a_session_of_another_kind_ends_with_a_message(client, query):
    async def talk():
        async with session(client, extra_query=query) as connection:
            return [event async for event in connection]

    (event,) = asyncio.run(talk())
    assert event.error.param in query


def test_a_session_takes_no_request_of_its_key(client, spoken):
    async def talk():
        async with session(client, key="key-of-one") as connection:
            await until(connection, "session.created")
            with pytest.raises(websockets.InvalidStatus, match="429"):
                async with session(client, key="key-of-one"):
                    pass
            return await asyncio.to_thread(
                transcribe, client.with_options(api_key="key-of-one"), audio_file(spoken[0] / 32768, RATE)
            )

    assert asyncio.run(talk()).text


def test_sessions_side_by_side_keep_apart(client, spoken):
    """Every session says another number of sentences, and has its own turns."""

    async def talk(number: int):
        async with session(client) as connection:
            await append(connection, as_pcm(np.concatenate([silence(0.3), *[spoken[0], silence(0.8)] * number])))
            events = await until(connection, *ENDED, number=number)
            await connection.input_audio_buffer.clear()
            return [event.type for event in events + await until(connection, "input_audio_buffer.cleared")]

    async def all_of_them():
        return await asyncio.gather(*(talk(1 + number % 3) for number in range(12)))

    for number, kinds in enumerate(asyncio.run(all_of_them())):
        assert kinds.count("input_audio_buffer.committed") == kinds.count(f"{TEXT}completed") == 1 + number % 3
        assert kinds.count(f"{TEXT}failed") == 0


def test_a_session_whose_ingress_dies_says_so(client, spoken):
    async def talk():
        async with session(client) as connection:
            await until(connection, "session.created")
            kill("ServeReplica:tiny_audio:Ingress")
            return await until(connection, "error")

    (error,) = asyncio.run(talk())
    assert error.error.code == "unavailable"
    assert transcribe(client, audio_file(spoken[0] / 32768, RATE)).text  # by the next ingress
