"""Files of every format, mutated: how `decode` takes them. Run in a process of its own, which a crash would end."""

import random
import resource
import sys
import time

import numpy as np

from tests.audio.encode import encode
from tiny_audio.audio.decode import AudioError, decode

EXTREMES = [
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\1",
    b"\1\0\0\0",
    b"\x80\0\0\0",
    b"\0\0\0\x80",
]


def speech_like(duration_s: float) -> np.ndarray:
    """(S,) int16 of decaying noise bursts: no two parts of it are alike, so that every codec has something to say."""
    rng = np.random.default_rng(0)
    noise = np.cumsum(rng.normal(size=int(duration_s * 16_000)))
    noise -= np.convolve(noise, np.ones(80) / 80, mode="same")
    return (8000 * noise / np.abs(noise).max()).astype(np.int16)


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = int(len(data) * rng.random() ** rng.choice((1, 3)))  # often near the start, where headers are
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 50, 400)))


def mutate(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 5))):
        start, stop = _span(data, rng)
        match rng.randrange(6):
            case 0:
                new = rng.randbytes(stop - start)
            case 1:
                new = bytes(byte ^ 1 << rng.randrange(8) for byte in data[start:stop][:4]) + data[start:stop][4:]
            case 2:
                new = rng.choice(EXTREMES)
                stop = min(len(data), start + 4)
            case 3:
                new = b""
            case 4:
                new = data[start:stop] * 2
            case _:
                new = bytes([rng.choice((0, 255))]) * (stop - start)
        data = data[:start] + new + data[stop:]
    return data


def fuzz(name: str, count: int, seed: int = 0) -> dict:
    """What happened: `errors` that are no AudioError, `unsaid` cuts that were taken for the whole, slowest, memory."""
    whole = encode(speech_like(0.3), name)
    length, rng, report = len(decode(whole, 2.0)), random.Random(f"{name} {seed}"), {"errors": [], "unsaid": [], "decoded": 0}
    slowest_s = 0.0
    for number in range(count):
        if number == count // 4:
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cut = rng.randrange(len(whole)) if number % 10 == 0 else None
        data = whole[:cut] if cut is not None else mutate(whole, rng)
        started = time.perf_counter()
        try:
            decoded = len(decode(data, 2.0))
            report["decoded"] += 1
            if cut is not None and decoded < 0.8 * length:
                report["unsaid"].append(cut)
        except AudioError:
            pass
        except Exception as error:
            report["errors"].append(f"{number}: {error!r}")
        slowest_s = max(slowest_s, time.perf_counter() - started)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    return {**report, "slowest_s": slowest_s, "grown_mib": grown_kib / 1024}


if __name__ == "__main__":
    import json

    print(json.dumps(fuzz(sys.argv[1], int(sys.argv[2]))))
