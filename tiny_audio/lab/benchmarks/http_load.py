"""Sends clips to the HTTP service as a number of clients do, each of which waits for its answer before it sends again."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection
from threading import Lock, Thread
from urllib.parse import urlsplit

import numpy as np
import requests
import soundfile

from tiny_audio.audio.clip import SAMPLE_RATE

PATH = "/v1/audio/transcriptions"
Upload = tuple[bytes, dict[str, str], float]  # body, headers, seconds of audio


def upload(clip: np.ndarray) -> Upload:
    """Makes the request of a WAV file, as `curl -F` sends it."""
    wav = io.BytesIO()
    soundfile.write(wav, clip, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    form = {"files": {"file": ("clip.wav", wav.getvalue(), "audio/wav")}, "data": {"model": "tiny_audio"}}
    prepared = requests.Request("POST", "http://any", **form).prepare()
    return prepared.body, dict(prepared.headers), len(clip) / SAMPLE_RATE


class Load:
    """Counts what the clients of one service were answered."""

    def __init__(self, url: str, uploads: Iterable[Upload]):
        self.address = urlsplit(url).netloc
        self.uploads: Iterator[Upload] = iter(uploads)
        self.lock = Lock()
        self.latencies_ms: list[float] = []
        self.audio_s = 0.0
        self.outcomes: Counter[str] = Counter()

    def client(self) -> None:
        """Sends one upload after another until there are none left."""
        connection = HTTPConnection(self.address, timeout=120)
        while True:
            with self.lock:
                body, headers, audio_s = next(self.uploads, (b"", {}, 0.0))
            if not body:
                return
            started = time.perf_counter()
            try:
                connection.request("POST", PATH, body, headers)
                answer = connection.getresponse()
                answer.read()
                outcome = str(answer.status)
            except OSError as error:
                connection.close()
                outcome = type(error).__name__
            with self.lock:
                self.latencies_ms.append(1000 * (time.perf_counter() - started))
                self.outcomes[outcome] += 1
                self.audio_s += audio_s * (outcome == "200")


def load_row(name: str, url: str, uploads: list[Upload], num_clients: int) -> dict:
    """Measures the speed of the service under so many clients, and what they wait."""
    load = Load(url, uploads)
    clients = [Thread(target=load.client) for _ in range(num_clients)]
    started = time.perf_counter()
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    seconds = time.perf_counter() - started
    median_ms, p95_ms = np.percentile(load.latencies_ms, [50, 95]).tolist()
    return {
        "name": name,
        "num_clients": num_clients,
        "audio_s_per_s": load.audio_s / seconds,
        "median_ms": median_ms,
        "p95_ms": p95_ms,
        "num_requests": len(uploads),
        "errors": {outcome: count for outcome, count in load.outcomes.items() if outcome != "200"},
    }
