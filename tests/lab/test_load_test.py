"""The load test, against a server that answers, refuses and breaks off as transcription servers do."""

import asyncio
import threading

import pytest
from aiohttp import web

from tiny_audio.config import ConfigError
from tiny_audio.lab.load_test.clips import uploads
from tiny_audio.lab.load_test.config import LoadTestConfig
from tiny_audio.lab.load_test.load import measure
from tiny_audio.lab.load_test.report import draw, table

ANSWER_S, REFUSED_EVERY = 0.05, 5


class Server:
    """Serves transcriptions on a free port, on a thread of its own; keeps the sizes of what it was sent."""

    def __init__(self):
        self.sizes, self.loop = [], asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=lambda: self.loop.run_until_complete(self._serve(started)), daemon=True).start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        app = web.Application()
        app.router.add_post("/v1/audio/transcriptions", self.transcribe)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}/v1".format(*site._server.sockets[0].getsockname())
        started.set()
        await asyncio.Event().wait()

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        self.sizes.append(len(form["file"].file.read()))
        unlucky = len(self.sizes) % REFUSED_EVERY == 0
        await asyncio.sleep(ANSWER_S)
        if form["model"] == "busy" and unlucky:
            return web.json_response({"error": {"message": "later"}}, status=429, headers={"Retry-After": "0"})
        if form.get("stream") != "true":
            return web.json_response({"text": "so"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type": "transcript.text.delta", "delta": "so"}\n\n')
        await asyncio.sleep(ANSWER_S)
        await response.write(b'data: {"error": {"message": "lost"}}\n\n' if unlucky else b"data: [DONE]\n\n")
        return response


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


def load(server: Server, model: str = "good", **settings) -> tuple[LoadTestConfig, list[dict]]:
    defaults = {"clients": [4], "duration_s": 1.0, "warm_up_s": 0.2, "made_of": "noise", "mean_s": 2.0}
    server.sizes.clear()
    config = LoadTestConfig(**(defaults | {"servers": {server.url: model}} | settings))
    server.sizes.clear()  # so that the first clip, which has to be answered, is not an unlucky one
    return config, list(measure(config, uploads(config)))


def test_clients_send_again_as_soon_as_they_are_answered(server, tmp_path):
    config, [row] = load(server)
    assert row["outcomes"] == {"ok": row["num_sent"]}
    assert 1000 * ANSWER_S <= row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert 4 < row["answers_per_s"] <= 1.05 * 4 / ANSWER_S  # more than one for each client, and no more than have been awaited
    assert row["audio_s_per_s"] / row["answers_per_s"] == pytest.approx(2.0, rel=0.2)
    assert set(server.sizes) <= {len(clip.content) for clip in uploads(config)}
    assert "4 clients" in table([row])
    draw([row], tmp_path / "load_test.png")
    assert (tmp_path / "load_test.png").read_bytes().startswith(b"\x89PNG")


def test_refusals_and_broken_streams_are_counted_apart(server):
    _, [row] = load(server, "busy")
    assert 0.1 < row["outcomes"]["429"] / row["num_sent"] < 0.3
    _, [row] = load(server, stream=True)
    assert 0.1 < row["outcomes"]["broken stream"] / row["num_sent"] < 0.3
    assert 1000 * ANSWER_S <= row["first_text_p50_ms"] <= row["p50_ms"] - 500 * ANSWER_S


def test_requests_come_at_their_rate_whatever_the_answers(server):
    _, [row] = load(server, clients=[], requests_per_s=[40])
    assert 20 < row["num_sent"] < 60
    assert row["outcomes"] == {"ok": row["num_sent"]}


def test_a_server_that_is_not_there_is_one_line(server):
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9/v1 does not transcribe for model 'good': ClientConnectorError"):
        load(server, servers={"http://127.0.0.1:9/v1": "good"})
