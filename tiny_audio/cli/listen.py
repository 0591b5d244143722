"""Listens, and writes what is said, a line after each pause, until it is stopped (Ctrl+C).

  tiny-audio listen                                         # the microphone; needs: pip install 'tiny-audio[listen]'
  arecord -q -t raw -f S16_LE -r 16000 -c 1 | tiny-audio listen -
  ffmpeg -loglevel error -re -i talk.mp3 -ac 1 -ar 16000 -f s16le - | tiny-audio listen -

With - it reads raw sound from standard input: 16-bit little-endian samples, one channel, 16 kHz.
"""

from __future__ import annotations

import argparse
import queue
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.vad import FRAME_SAMPLES
from tiny_audio.audio.windows import Splitter, window_samples
from tiny_audio.config import ConfigError, require
from tiny_audio.storage import require_model

VAD = VadConfig(silence_duration_ms=500, join_pause_ms=0)
CHUNK_SAMPLES = 4 * FRAME_SAMPLES  # 128 ms
MAX_CHUNKS = 1000  # two minutes that the model may be behind a microphone; then sound is lost, and that is told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("source", nargs="?", choices=["-"], help="- reads raw sound from standard input")


def run(arguments: argparse.Namespace) -> int:
    """Writes a line for each stretch of speech, in order, as soon as it and those before it are recognised."""
    model = require_model(arguments.model)
    with _standard_input() if arguments.source else _microphone() as chunks:
        from tiny_audio.inference.local import load_transcriber

        transcriber = load_transcriber(model, arguments.device)
        print("listening", file=sys.stderr, flush=True)
        splitter, waiting = Splitter(window_samples(transcriber.max_duration_s), arguments.vad), deque()
        with suppress(KeyboardInterrupt):  # what was said before is still written
            for chunk in chunks:
                waiting += [transcriber.submit(window.pcm) for window in splitter.add(chunk)]
                while waiting and waiting[0].done():
                    _write(transcriber, waiting.popleft())
        waiting += [transcriber.submit(window.pcm) for window in splitter.finish()]
        for future in waiting:
            _write(transcriber, future)
    return 0


def _write(transcriber, future) -> None:
    if text := transcriber.transcript(future.result()).text:
        print(text, flush=True)


@contextmanager
def _standard_input() -> Iterator[Iterator[np.ndarray]]:
    require(not sys.stdin.isatty(), "standard input is the keyboard; pipe sound into it, see --help")
    data = iter(lambda: sys.stdin.buffer.read(2 * CHUNK_SAMPLES), b"")
    yield (np.frombuffer(part[: len(part) // 2 * 2], "<i2") for part in data)


@contextmanager
def _microphone() -> Iterator[Iterator[np.ndarray]]:
    """Yields the sound of the default microphone, by PortAudio."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio's library is missing
        raise ConfigError(
            f"the microphone wants sounddevice and PortAudio ({error}): pip install 'tiny-audio[listen]' and apt install "
            "libportaudio2; or pipe sound in, see --help"
        ) from None
    chunks: queue.Queue[np.ndarray] = queue.Queue(MAX_CHUNKS)

    def take(data, _num_samples, _time, status) -> None:
        try:
            chunks.put_nowait(np.frombuffer(bytes(data), np.int16))
        except queue.Full:
            status = "the model is two minutes behind"
        if status:
            print(f"sound was lost: {status}", file=sys.stderr)

    try:
        with sounddevice.RawInputStream(SAMPLE_RATE, CHUNK_SAMPLES, channels=1, dtype="int16", callback=take):
            yield iter(chunks.get, None)
    except sounddevice.PortAudioError as error:
        raise ConfigError(f"no microphone can be opened ({error}); pipe sound in, see --help") from None
