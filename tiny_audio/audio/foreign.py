"""Reads formats that libsndfile cannot, with FFmpeg in separate processes, so that a hostile file does no harm.

Each process has no files, no network and little memory, and it is stopped if a file takes too long. It is kept for the next
file, and exits by itself after a minute without one or after 1,000 files. PyAV brings FFmpeg and is optional
(`pip install av`): its code is BSD, but its wheels hold GPL libraries (x264, x265), so users install it and no image has it.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

DEMUXERS = {  # all permitted FFmpeg demuxers, by kind of file
    "adts": "aac",
    "aiff": "aiff",
    "amr": "amr",
    "au": "au",
    "caf": "caf",
    "flac": "flac",
    "mp2": "mp3",
    "mp3": "mp3",
    "mp4": "mov",
    "mpeg": "mpeg",
    "mpegts": "mpegts",
    "ogg": "ogg",
    "wav": "wav",
    "w64": "wav",
    "webm": "matroska",
}
REMEDY = "pip install av"
MAX_PROCESSES = 4  # at a time, per calling process
LIMIT_S = 60.0  # wall-clock time for clips up to a minute; CPU time limit: a third of it
GRACE_S = 1.0
SPARE_BYTES = 2**20  # answer size beyond its samples
_ERROR = b"-"
_idle: list[_Process] = []
_slots = threading.BoundedSemaphore(MAX_PROCESSES)


def _environment() -> dict[str, str]:
    """Returns an environment that tells Python where its modules and libraries are, and leaves out any secrets."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Refused(ValueError):
    """Reports a file that is not decoded, with a `reason` that `decode` counts by."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class _Process:
    """Holds one FFmpeg process and the socket to it."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-s", str(Path(__file__).with_name("foreign_process.py"))],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
            )
        self.socket, self.owner = ours, os.getpid()

    def stop(self) -> None:
        """Ends the process, after giving it a second to exit by itself so that its exit code shows that it did."""
        self.socket.close()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, head: bytes, data: memoryview, max_answer: int, deadline: float) -> tuple[bytes, bytearray]:
        """Sends a file to the process and returns the (status, body) of its answer.

        Raises:
            OSError: the process died, ran out of time, or announced an answer of more than `max_answer` bytes.
        """
        self.socket.settimeout(max(0.1, deadline - time.monotonic()))
        self.socket.sendall(head)
        self.socket.sendall(data)
        status, size = struct.unpack(">cQ", self._receive(9, deadline))
        if size > max_answer:
            raise ConnectionError("the decoder is out of its mind")
        return status, self._receive(size, deadline)

    def _receive(self, size: int, deadline: float) -> bytearray:
        answer = bytearray(size)
        view = memoryview(answer)
        while view:
            self.socket.settimeout(max(0.1, deadline - time.monotonic()))
            received = self.socket.recv_into(view)
            if not received:
                raise ConnectionError("the decoder died")
            view = view[received:]
        return answer


def _take_idle() -> _Process | None:
    while _idle:
        try:
            process = _idle.pop()
        except IndexError:  # race with another thread
            return None
        if process.owner == os.getpid() and process.process.poll() is None:
            return process
        process.socket.close()  # already ended, or owned by the parent of this fork
    return None


def _ask(head: bytes, data: memoryview, max_answer: int, limit_s: float) -> tuple[bytes, bytearray]:
    """Returns the answer of an idle process, or of a new one if there is none or if it exits at this very moment."""
    deadline = time.monotonic() + limit_s
    for process in (_take_idle(), None):
        process = process or _Process()
        try:
            answer = process.ask(head, data, max_answer, deadline)
        except OSError as error:
            process.stop()
            if process.process.returncode != 0 or isinstance(error, TimeoutError):
                raise
        else:
            _idle.append(process)
            return answer
    raise ConnectionError("the decoder left twice")


def read_foreign(data: memoryview | bytes, kind: str, max_duration_s: float, max_samples: int) -> list[tuple[np.ndarray, int]]:
    """Decodes a file with FFmpeg to pairs of (S, channels) float32 and sample rate, with a new pair at each change of format.

    Raises:
        Refused: the file cannot be decoded, is longer than `max_duration_s` or has more than `max_samples` over all channels,
            or the decoder is not installed.
    """
    if kind not in DEMUXERS:
        raise Refused("not_audio", f"this {kind} file is not readable")
    if importlib.util.find_spec("av") is None:
        raise Refused("not_audio", f"{kind} files of this sort are read by PyAV, which is not installed here ({REMEDY})")
    limit_s = LIMIT_S * max(1.0, max_duration_s / 60)
    head = struct.pack(">16sQdQd", DEMUXERS[kind].encode(), len(data), max_duration_s, max_samples, limit_s / 3)
    with _slots:
        try:
            status, body = _ask(head, memoryview(data), 4 * max_samples + SPARE_BYTES, limit_s)
        except TimeoutError:
            raise Refused("damaged", f"the {kind} file was not decoded within {limit_s:.0f} s") from None
        except OSError:
            raise Refused("damaged", f"the {kind} file ended its decoder") from None
    if status == _ERROR:
        reason, _, message = body.decode(errors="replace").partition(" ")
        raise Refused(reason, message)
    return _segments(body)


def _segments(body: bytearray) -> list[tuple[np.ndarray, int]]:
    segments, position = [], 0
    while position < len(body):
        rate, channels, num_samples = struct.unpack_from(">IIQ", body, position)
        samples = np.frombuffer(body, np.float32, num_samples * channels, position + 16)
        segments.append((samples.reshape(num_samples, channels), rate))
        position += 16 + 4 * num_samples * channels
    return segments
