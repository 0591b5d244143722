"""Puts load on a server that speaks OpenAI's transcription API, and measures how fast, and how well, it answers."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import numpy as np

from tiny_audio.config import one_line, require
from tiny_audio.lab.load_test.clips import Upload
from tiny_audio.lab.load_test.config import LoadTestConfig

KEY_VARIABLE = "OPENAI_API_KEY"  # as for OpenAI's own clients; a key on the command line would be seen by others
PAUSE_S, LONGEST_PAUSE_S = 1.0, 5.0  # of a client that was refused, and at most where the server says for how long


@dataclass(frozen=True)
class Answer:
    """Holds what came of a request: an outcome ("ok", an HTTP status, or the kind of a broken connection), and when."""

    outcome: str
    sent_s: float
    ended_s: float
    audio_s: float
    first_text_s: float | None = None
    message: str = ""  # the start of a refusal
    pause_s: float = 0.0  # that the client waits before it sends again


class Client:
    """Sends clips to one server, over connections that it keeps."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, stream: bool):
        self.session, self.url = session, f"{url.rstrip('/')}/audio/transcriptions"
        self.fields = {"model": model, "response_format": "json"} | ({"stream": "true"} if stream else {})

    async def send(self, upload: Upload) -> Answer:
        """Sends a clip and waits for the whole answer, whatever comes."""
        form = aiohttp.FormData(self.fields)
        form.add_field("file", upload.content, filename=upload.name, content_type="application/octet-stream")
        sent, first = time.monotonic(), None
        try:
            async with self.session.post(self.url, data=form) as response:
                outcome, message = "ok" if response.status == 200 else str(response.status), ""
                async for line in response.content:
                    if first is None and b"transcript.text.delta" in line:
                        first = time.monotonic()
                    if outcome != "ok" or line.startswith(b'data: {"error"'):
                        outcome = "broken stream" if outcome == "ok" else outcome
                        message += line.decode(errors="replace")
                retry_after = response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome, message, retry_after = type(error).__name__, str(error), ""
        pause_s = 0.0 if outcome == "ok" else min(float(retry_after), LONGEST_PAUSE_S) if retry_after.isdigit() else PAUSE_S
        return Answer(outcome, sent, time.monotonic(), upload.duration_s, first, message, pause_s)


def measure(config: LoadTestConfig, clips: list[Upload]) -> Iterator[dict]:
    """Puts each load on each server in turn; yields a row of figures as each ends.

    Raises:
        ConfigError: a server does not answer a first clip.
    """
    for url, model in config.servers.items():
        first = asyncio.run(_first_answer(config, clips[0], url, model))
        refusal = f"{first.outcome} {one_line(first.message)}"
        require(first.outcome == "ok", f"{url} does not transcribe for model {model!r}: {refusal}")
    loads: list[tuple[str, float]] = [("clients", count) for count in config.clients]
    loads += [("requests_per_s", rate) for rate in config.requests_per_s]
    for (kind, amount), (url, model) in itertools.product(loads, config.servers.items()):
        answers, started = asyncio.run(_answers(config, clips, kind, amount, url, model))
        yield {"url": url, "model": model, kind: amount} | summary(answers, started + config.warm_up_s, config.duration_s)


@asynccontextmanager
async def _client(config: LoadTestConfig, url: str, model: str) -> AsyncIterator[Client]:
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limit, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(config.timeout_s)
    async with aiohttp.ClientSession(headers=headers, connector=limit, timeout=timeout) as session:
        yield Client(session, url, model, config.stream)


async def _first_answer(config: LoadTestConfig, clip: Upload, url: str, model: str) -> Answer:
    async with _client(config, url, model) as client:
        return await client.send(clip)


async def _answers(
    config: LoadTestConfig, clips: list[Upload], kind: str, amount: float, url: str, model: str
) -> tuple[list[Answer], float]:
    """Puts one load on one server; returns every answer, and when the load began."""
    async with _client(config, url, model) as client:
        turns, answers, started = itertools.cycle(clips), [], time.monotonic()
        until = started + config.warm_up_s + config.duration_s

        async def send_one() -> Answer:
            answers.append(await client.send(next(turns)))
            return answers[-1]

        async def send_on() -> None:
            while time.monotonic() < until:
                await asyncio.sleep((await send_one()).pause_s)

        async with asyncio.TaskGroup() as tasks:
            if kind == "clients":
                for _ in range(int(amount)):
                    tasks.create_task(send_on())
            else:
                async for _ in _poisson(amount, until):
                    tasks.create_task(send_one())
    return answers, started


async def _poisson(rate: float, until: float) -> AsyncIterator[None]:
    """Yields `rate` times a second on average, at times that do not depend on one another."""
    rng, due = random.Random(0), time.monotonic()
    while (due := due + rng.expovariate(rate)) < until:
        await asyncio.sleep(due - time.monotonic())
        yield


def summary(answers: list[Answer], begin_s: float, duration_s: float) -> dict:
    """Computes the figures of the answers that ended within `duration_s` from `begin_s` on, and of the requests sent then.

    Throughput counts what was answered in that time; latencies and outcomes, what was sent in it, however late it was answered.
    """
    end_s = begin_s + duration_s
    done = [answer for answer in answers if answer.outcome == "ok" and begin_s <= answer.ended_s < end_s]
    sent = [answer for answer in answers if begin_s <= answer.sent_s < end_s]
    ok = [answer for answer in sent if answer.outcome == "ok"]
    first = [answer.first_text_s - answer.sent_s for answer in ok if answer.first_text_s is not None]
    return {
        "audio_s_per_s": sum(answer.audio_s for answer in done) / duration_s,
        "answers_per_s": len(done) / duration_s,
        "num_sent": len(sent),
        "outcomes": dict(Counter(answer.outcome for answer in sent).most_common()),
        **{f"p{rank}_ms": _percentile_ms([answer.ended_s - answer.sent_s for answer in ok], rank) for rank in (50, 95, 99)},
        "first_text_p50_ms": _percentile_ms(first, 50),
    }


def _percentile_ms(seconds: list[float], rank: int) -> float | None:
    return 1000 * float(np.percentile(seconds, rank)) if seconds else None
