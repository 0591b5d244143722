"""Reads formats that libsndfile cannot, with FFmpeg in separate processes, so that a hostile file does no harm.

A process asks for the parts of a file that it wants, and answers with blocks of samples. It has no files, no network and little
memory, and it is stopped if a file takes too long. It is kept for the next file, and exits by itself after a minute without
one or after 1,000 files. PyAV brings FFmpeg and is optional (`pip install av`): its code is BSD, but its wheels hold GPL
libraries (x264, x265), so users install it and no image has it.
"""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
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
LIMIT_S = 60.0  # time that a process may take for a file, beyond the file's own at `SLOWEST`; CPU time limit: a third of it
SLOWEST = 10  # seconds of audio a second; AAC takes several hundred
GRACE_S = 1.0
MAX_MESSAGE_BYTES = 2**26  # far more than a block of samples has
_WANTED, _SOUND, _DONE, _REFUSED = b"?", b"~", b"+", b"-"  # kinds of its messages
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

    def ask(self, head: bytes, data: io.RawIOBase, limit_s: float) -> Iterator[memoryview]:
        """Yields the blocks of a file as the process sends them; only the time that it is waited for counts.

        Raises:
            Refused: the process says why the file is not decoded.
            OSError: the process died, ran out of time, or sent what makes no sense.
        """
        self.left_s = limit_s
        self.socket.settimeout(limit_s)
        self.socket.sendall(head)
        while True:
            kind, body = self._message(data)
            if kind == _DONE:
                return
            if kind == _REFUSED:
                reason, _, message = body.decode(errors="replace").partition(" ")
                raise Refused(reason, message)
            yield memoryview(body)

    def _message(self, data: io.RawIOBase) -> tuple[bytes, bytearray]:
        """Returns the next message that is no question for a part of the file, and answers those."""
        while True:
            kind, size = struct.unpack(">cQ", self._receive(9))
            if kind not in (_WANTED, _SOUND, _DONE, _REFUSED) or size > MAX_MESSAGE_BYTES:
                raise ConnectionError("the decoder is out of its mind")
            body = self._receive(size)
            if kind != _WANTED:
                return kind, body
            position, size = struct.unpack(">QQ", body)
            data.seek(position)
            if size > MAX_MESSAGE_BYTES or len(part := data.read(size)) != size:
                raise ConnectionError("the decoder asks for what is not there")
            self.socket.settimeout(max(0.1, self.left_s))
            self.socket.sendall(part)

    def _receive(self, size: int) -> bytearray:
        message = bytearray(size)
        view = memoryview(message)
        while view:
            if self.left_s <= 0:
                raise TimeoutError
            begin = time.monotonic()
            self.socket.settimeout(self.left_s)
            received = self.socket.recv_into(view)
            self.left_s -= time.monotonic() - begin
            if not received:
                raise ConnectionError("the decoder died")
            view = view[received:]
        return message


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


def _keep(process: _Process) -> None:
    if len(_idle) < MAX_PROCESSES:
        _idle.append(process)
    else:
        process.stop()


def _ask(head: bytes, data: io.RawIOBase, limit_s: float) -> Iterator[memoryview]:
    """Yields the blocks of an idle process, or of a new one if there is none or if it exits at this very moment."""
    for process in (_take_idle(), None):
        process, begun = process or _Process(), False
        try:
            for block in process.ask(head, data, limit_s):
                begun = True
                yield block
        except Refused:
            _keep(process)
            raise
        except OSError as error:
            process.stop()
            if begun or process.process.returncode != 0 or isinstance(error, TimeoutError):
                raise
        except BaseException:  # the caller has left, or what the process sends makes no sense
            process.process.kill()
            process.stop()
            raise
        else:
            _keep(process)
            return
    raise ConnectionError("the decoder left twice")


def read_foreign(
    data: io.RawIOBase, kind: str, max_duration_s: float, max_samples: int, at_once: bool
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Decodes a file with FFmpeg; yields its samples in blocks, and holds no more than one.

    Args:
        at_once: whether the caller takes the blocks without delay. It then waits for one of `MAX_PROCESSES`; others have a
            process beside those, which mostly sleeps.

    Yields:
        A number that goes up at each change of format, the sample rate, and (S, channels) float32.

    Raises:
        Refused: the file cannot be decoded, is longer than `max_duration_s` or has more than `max_samples` over all channels,
            or the decoder is not installed.
    """
    if kind not in DEMUXERS:
        raise Refused("not_audio", f"this {kind} file is not readable")
    if importlib.util.find_spec("av") is None:
        raise Refused("not_audio", f"{kind} files of this sort are read by PyAV, which is not installed here ({REMEDY})")
    limit_s = LIMIT_S + max_duration_s / SLOWEST
    head = struct.pack(">16sQdQd", DEMUXERS[kind].encode(), data.seek(0, io.SEEK_END), max_duration_s, max_samples, limit_s / 3)
    num_samples = 0
    try:
        with _slots if at_once else nullcontext():
            for block in _ask(head, data, limit_s):
                number, rate, channels = struct.unpack_from(">III", block)
                samples = np.frombuffer(block, np.float32, offset=12)
                num_samples += len(samples)
                if not channels or len(samples) % channels or num_samples > max_samples:
                    raise Refused("damaged", f"the {kind} file confuses its decoder")
                yield number, rate, samples.reshape(-1, channels)
    except TimeoutError:
        raise Refused("damaged", f"the {kind} file was not decoded within {limit_s:.0f} s") from None
    except OSError:
        raise Refused("damaged", f"the {kind} file ended its decoder") from None
