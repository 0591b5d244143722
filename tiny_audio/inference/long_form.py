"""Transcribes recordings of any length: their windows are rows of the engine's batch, and come back as segments, in order.

The module imports no torch: the HTTP ingress and the tasks of a batch job use the windows, and have no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tiny_audio.audio.windows import Window

if TYPE_CHECKING:
    from tiny_audio.inference.transcriber import Transcriber, Transcript

WINDOWS_AT_ONCE = 64  # of a recording, in the engine; a longer one waits outside it as sound not yet decoded


@dataclass(frozen=True)
class Segment:
    """Holds the transcript of a window; all times are from the recording's beginning, those of `transcript.words` too.

    `start_s` and `end_s` say where its speech lies.
    """

    start_s: float
    end_s: float
    transcript: Transcript


def transcribe_windows(
    transcriber: Transcriber, windows: Iterable[Window], windows_at_once: int = WINDOWS_AT_ONCE
) -> Iterator[Segment]:
    """Transcribes the windows of a recording; yields a segment for each, in order, as soon as it and all before it are done.

    The engine's thread must be running (`transcriber.engine.start()`). A caller who closes the generator frees what the
    engine holds for it.

    Args:
        windows: taken as there is room for them; `windows` of `tiny_audio.audio.windows` makes them.
        windows_at_once: the most that are in the engine.
    """
    waiting: deque = deque()
    try:
        for window in windows:
            waiting.append((window, transcriber.submit(window.pcm)))
            while waiting and (len(waiting) >= windows_at_once or waiting[0][1].done()):
                yield _segment(transcriber, *waiting.popleft())
        while waiting:
            yield _segment(transcriber, *waiting.popleft())
    finally:
        for _, future in waiting:
            future.cancel()


def _segment(transcriber: Transcriber, window: Window, future) -> Segment:
    transcript = transcriber.transcript(future.result(), with_words=True)
    words = transcript.words and [word.later(window.offset_s) for word in transcript.words]
    return Segment(window.start_s, window.end_s, replace(transcript, words=words))
