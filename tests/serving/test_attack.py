"""Slow and large uploads, as many as an attacker has; prints what they cost: pytest -m slow -s tests/serving/test_attack.py"""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests

from tests.serving.conftest import GOOD, audio_file
from tests.serving.test_run import ask, config_file, running
from tiny_audio.lab.ray_cli import free_port

NUM_SLOW, NUM_LARGE = 500, 60
LARGE = audio_file(np.zeros(24 << 19))  # 24 MiB
HEAD = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
MEMORY_MIB = 1536  # of a proxy and of an ingress, shared memory included, with the default of 256 MiB for uploads


@pytest.fixture(scope="module")
def service(tmp_path_factory, saved_model) -> str:
    folder = tmp_path_factory.mktemp("attack")
    with running(config_file(folder, http={"port": free_port(8000)}, model=saved_model, skip_silence=False)) as (url, _):
        yield url


def seconds_of(call, *arguments) -> float:
    started = time.perf_counter()
    assert call(*arguments).status_code == 200
    return time.perf_counter() - started


def times_ms(url: str) -> dict[str, float]:
    """Measures others' requests, two at a time: the 95th percentile of their times, and the longest of /healthz."""
    with ThreadPoolExecutor(2) as pool:
        transcriptions = list(pool.map(lambda _: seconds_of(ask, url, GOOD), range(200)))
    health = [seconds_of(requests.get, f"{url}/healthz") for _ in range(50)]
    return {"p95": 1000 * float(np.percentile(transcriptions, 95)), "healthz": 1000 * max(health)}


async def trickle(url: str, ended: threading.Event) -> bytes:
    """Sends a byte a second until the service closes the connection; returns its answer."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    writer.write(HEAD)
    answer, piece = b"", None
    with suppress(ConnectionError):  # a byte was under way as the connection was closed
        while piece != b"" and not ended.is_set():
            answer, piece = answer + (piece or b""), None
            writer.write(b"x")
            with suppress(TimeoutError):
                piece = await asyncio.wait_for(reader.read(4096), 1)
    writer.close()
    return answer


@contextmanager
def peak_rss_mib():
    """Follows the largest memory of the proxies and ingresses of this machine while the context lasts."""
    peaks, ended = {"ProxyActor": 0, "Ingress": 0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                for name in peaks:
                    if process.info["memory_info"] and name in "".join(process.info["cmdline"] or ()):
                        peaks[name] = max(peaks[name], process.info["memory_info"].rss >> 20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


@pytest.mark.slow
def test_slow_uploads_slow_down_nobody_else(service):
    ended, answers = threading.Event(), []

    async def all_of_them() -> None:
        answers.extend(await asyncio.gather(*(trickle(service, ended) for _ in range(NUM_SLOW))))

    times_ms(service)
    quiet, slow = times_ms(service), threading.Thread(target=lambda: asyncio.run(all_of_them()))
    slow.start()
    time.sleep(2)
    print(f"\nms, quiet: {quiet}; while {NUM_SLOW} connections send a byte a second: {times_ms(service)}")
    slow.join(60)
    ended.set()
    slow.join()
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 408"] * NUM_SLOW


@pytest.mark.slow
def test_large_uploads_stay_within_their_memory(service):
    with peak_rss_mib() as peaks, ThreadPoolExecutor(NUM_LARGE) as pool:
        codes = [answer.status_code for answer in pool.map(lambda _: ask(service, LARGE), range(NUM_LARGE))]
    print(f"\nMiB, {NUM_LARGE} uploads of {len(LARGE) >> 20} MiB: {peaks}")
    assert set(codes) <= {200, 429}
    assert max(peaks.values()) < MEMORY_MIB
