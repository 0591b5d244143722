"""No request that was taken on is lost: not when a process dies, and not when the model changes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import psutil
import pytest
from ray import serve

from tests.serving.conftest import ARGS, TONES, transcribe
from tiny_audio.serving.app import build


@contextmanager
def steady_load(client: openai.OpenAI, expected: list[str], num_clients: int = 3):
    """Asks for transcripts without a pause, and never twice for one, until the context ends; then checks every answer.

    The context begins once each client has had an answer.
    """
    begun, ended = threading.Barrier(num_clients + 1), threading.Event()

    def ask(number: int) -> list[bool]:
        right = [transcribe(client, TONES[number]).text == expected[number]]
        begun.wait(60)
        while not ended.is_set():
            right.append(transcribe(client, TONES[number]).text == expected[number])
        return right

    with ThreadPoolExecutor(num_clients) as pool:
        asking = [pool.submit(ask, number) for number in range(num_clients)]
        try:
            begun.wait(60)
            yield
        finally:
            ended.set()
        answers = [answer for one in asking for answer in one.result()]
    assert len(answers) > num_clients
    assert all(answers)


def kill(title: str) -> None:
    own = {process.pid for process in psutil.Process().children(recursive=True)}  # this test's Ray, and no other of this machine
    named = [process for process in psutil.process_iter(["cmdline"]) if title in "".join(process.info["cmdline"] or ())]
    (process,) = [process for process in named if process.pid in own]
    process.kill()


def test_a_replica_and_an_ingress_that_die_lose_nothing(client, alone):
    with steady_load(client, alone):
        transcribe(client, TONES[0])
        kill("ServeReplica:tiny_audio:Transcriber")
        transcribe(client, TONES[1])  # by the next replica
        kill("ServeReplica:tiny_audio:Ingress")
        transcribe(client, TONES[2])


@pytest.mark.slow
def test_an_update_of_the_model_answers_throughout(client, alone, saved_model):
    with steady_load(client, alone):
        serve.run(build({"model": saved_model} | ARGS | {"max_batch_size": 4}), name="tiny_audio")
        assert [model.id for model in client.models.list()] == ["tiny_audio", "whisper-1"]
