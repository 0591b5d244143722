"""Several proxies at one port: each answers, one that dies comes back, and an end waits for what all of them have taken on."""

import asyncio
import json
import signal
import subprocess
import threading
import time

import psutil

from tests.conftest import ROOT
from tests.serving.conftest import TONES
from tests.serving.realtime.test_socket import socket
from tests.serving.test_run import COMMAND, ask, config_file, running
from tiny_audio.lab.local_nodes import wait_for
from tiny_audio.lab.ray_cli import free_port

NUM_PROXIES, NUM_REQUESTS = 3, 20


def listeners(port: int) -> set[int]:
    """The processes that listen at a port; a socket whose process is about to be gone has none."""
    listening = [one for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == psutil.CONN_LISTEN]
    return {one.pid for one in listening if one.pid}


async def first_events(url: str, number: int) -> set[str]:
    """Opens realtime sessions at once, one on each connection; returns what kinds of event they begin with."""

    async def first_event() -> str:
        async with socket(url) as connection:
            return json.loads(await connection.recv())["type"]

    return set(await asyncio.gather(*(first_event() for _ in range(number))))


def test_several_proxies_share_the_port(tmp_path, saved_model):
    environment = {"TINY_AUDIO_NUM_PROXIES": str(NUM_PROXIES)}
    port = free_port(8000)
    config = config_file(tmp_path, environment, http={"port": port}, model=saved_model, skip_silence=False)
    statuses = []
    with running(config) as (url, server):
        at_first = wait_for(lambda: len(found := listeners(port)) == NUM_PROXIES and found, "all proxies", 60)
        second = subprocess.run([*COMMAND, config], cwd=ROOT, capture_output=True, text=True)
        assert (second.returncode, "http_options.port=" in second.stderr) == (2, True)
        *others, youngest = sorted(map(psutil.Process, at_first), key=psutil.Process.create_time)  # Serve's own is the oldest
        youngest.kill()
        wait_for(lambda: len(listeners(port) - at_first) == 1, "a proxy in its place", 60)
        assert {process.pid for process in others} < listeners(port)

        assert len({ask(url, TONES[0]).json()["text"] for _ in range(4 * NUM_PROXIES)}) == 1
        assert asyncio.run(first_events(url, 4 * NUM_PROXIES)) == {"session.created"}

        def note(number: int) -> None:
            statuses.append(ask(url, TONES[number % len(TONES)]).status_code)

        asking = [threading.Thread(target=note, args=(number,)) for number in range(NUM_REQUESTS)]
        for thread in asking:
            thread.start()
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join()
        assert server.wait(60) == 0
    assert len(statuses) == NUM_REQUESTS
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 0
