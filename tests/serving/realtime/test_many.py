"""200 people who speak at once, in real time; prints what they cost: pytest -m slow -s tests/serving/realtime/test_many.py"""

import asyncio
import base64
import json
import random
import signal
import time

import numpy as np
import openai
import psutil
import pytest

from tests.serving.realtime.test_session import COMMIT, append, as_pcm, silence
from tests.serving.realtime.test_socket import ENDED, PIECE, SENTENCES, TEXT, socket, until
from tests.serving.test_run import config_file, running
from tiny_audio.lab.ray_cli import free_port
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize

NUM_SESSIONS, NUM_PIECES = 200, 200  # pieces of 100 ms
PROCESSES = ("ProxyActor", "Ingress", "Transcriber")


@pytest.fixture(scope="module")
def service(tmp_path_factory, saved_model):
    with running(
        config_file(tmp_path_factory.mktemp("many"), http={"port": free_port(8000)}, model=saved_model)
    ) as running_service:
        yield running_service


def cpu_s() -> dict[str, float]:
    """Adds up the CPU time of the service's processes, by kind."""
    used = dict.fromkeys(PROCESSES, 0.0)
    for process in psutil.Process().children(recursive=True):
        command = "".join(process.cmdline())
        for name in PROCESSES:
            if name in command:
                used[name] += sum(process.cpu_times()[:2])
    return used


async def speak(client: openai.AsyncOpenAI, number: int, sentence: np.ndarray) -> tuple[int, list[float]]:
    """Says a sentence `1 + number % 3` times, each followed by silence, at the speed of speech.

    Returns how many of its turns came back, and how long after their ends their texts came.
    """
    num_turns = 1 + number % 3
    said = as_pcm(np.concatenate([silence(random.Random(number).uniform(0.3, 2)), *[sentence, silence(2)] * num_turns]))
    delays_s, stops_ms, sent_at = [], {}, []

    async def listen(connection) -> None:
        async for event in connection:
            if event.type == "input_audio_buffer.speech_stopped":
                stops_ms[event.item_id] = event.audio_end_ms
            elif event.type in ENDED:
                assert event.type == f"{TEXT}completed", event
                delays_s.append(time.monotonic() - sent_at[stops_ms[event.item_id] // 100])

    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        await until(connection, "session.created")
        listener, began = asyncio.create_task(listen(connection)), time.monotonic()
        for piece in range(NUM_PIECES):
            data = said[piece * PIECE : (piece + 1) * PIECE].ljust(PIECE, b"\0")
            sent_at.append(time.monotonic())
            await connection.input_audio_buffer.append(audio=base64.b64encode(data).decode())
            await asyncio.sleep(max(0.0, began + (piece + 1) / 10 - time.monotonic()))
        for _ in range(600):
            if len(delays_s) == num_turns:
                break
            await asyncio.sleep(0.1)
        listener.cancel()
    return num_turns - len(delays_s), delays_s


@pytest.mark.slow
def test_two_hundred_speak_at_once_and_each_is_heard(service):
    url, _ = service
    sentences = [synthesize(text, held_out_voices()[i], random.Random(i)) for i, text in enumerate(SENTENCES)]

    async def all_of_them():
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
        return await asyncio.gather(*(speak(client, number, sentences[number % 2]) for number in range(NUM_SESSIONS)))

    before = cpu_s()
    answers = asyncio.run(all_of_them())
    used = {name: round(seconds - before[name], 1) for name, seconds in cpu_s().items()}
    delays_s = np.array([delay for _, delays in answers for delay in delays])
    p50, p95 = np.percentile(delays_s, [50, 95])
    print(f"\n{NUM_SESSIONS} sessions of {NUM_PIECES / 10:g} s, {len(delays_s)} turns: CPU seconds {used}")
    print(f"text after {p50:.2f} s (median), {p95:.2f} s (95 %)")
    assert [missing for missing, _ in answers] == [0] * NUM_SESSIONS


@pytest.mark.slow
def test_sigterm_ends_sessions_with_a_message_once_they_have_their_texts(service):
    url, server = service
    sentence = synthesize(SENTENCES[0], held_out_voices()[0], random.Random(0))

    async def talk() -> list[dict]:
        async with socket(url) as connection:
            for event in (append(as_pcm(sentence)), COMMIT):
                await connection.send(json.dumps(event))
            await asyncio.sleep(0.05)
            server.send_signal(signal.SIGTERM)
            return [json.loads(text) async for text in connection]

    events = asyncio.run(talk())
    assert events[-1]["error"]["code"] == "unavailable"
    assert [event["type"] for event in events].count(f"{TEXT}completed") == 1
    assert server.wait(60) == 0
