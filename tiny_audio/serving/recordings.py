"""How the ingress transcribes uploads of any length: each window of a recording is an ordinary call of the model.

What is long shares threads and places, so that short clips find room beside it, however many hours wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any, BinaryIO, Literal

import numpy as np

from tiny_audio.audio.windows import Window
from tiny_audio.inference.file_windows import CutFile, Cutting, cut_long, cut_short
from tiny_audio.serving.answers import Segment, as_word
from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.form import ServerVad
from tiny_audio.serving.model_calls import ModelCalls
from tiny_audio.serving.pieces import Piece

LONG_THREADS = 2  # that cut long recordings: Python runs little more at once, and the event loop wants its turns


class Recordings:
    """Cuts uploads, and asks the model for the text of their windows."""

    def __init__(self, model: ModelCalls, args: Arguments):
        self.model, self.args = model, args
        self.windows_at_once = max(2, args.max_batch_size // 4)  # of a recording
        # For the windows of all: half of what the replicas take on.
        self.places = asyncio.Semaphore(max(self.windows_at_once, args.slots_per_ingress))
        self.threads = ThreadPoolExecutor(LONG_THREADS, "long-recordings")

    @asynccontextmanager
    async def cut(self, file: BinaryIO, chunking: ServerVad | Literal["auto"] | None) -> AsyncIterator[CutFile]:
        """Cuts a file as `chunking_strategy` says; its windows are made as they are taken, within the context.

        Raises:
            AudioError: the file cannot be used; of a long one all is checked at once.
        """
        cutting = self._cutting(await self.model.max_duration_s(), chunking)
        if cut := await asyncio.to_thread(cut_short, file, cutting):
            yield cut
            return
        opened, loop = ExitStack(), asyncio.get_running_loop()
        cut = await loop.run_in_executor(self.threads, opened.enter_context, cut_long(file, cutting))
        with opened:
            yield cut

    def _cutting(self, window_s: float, chunking: ServerVad | Literal["auto"] | None) -> Cutting:
        limits = min(window_s, self.args.max_duration_s), self.args.max_duration_s
        if isinstance(chunking, ServerVad):
            return Cutting(*limits, skip_silence=True, vad=chunking.config(), cuts_short=True)
        return Cutting(*limits, self.args.skip_silence or chunking == "auto", self.args.vad)

    async def segments(self, cut: CutFile, model: str | None, with_words: bool) -> AsyncIterator[Segment]:
        """Yields the segments of a recording by a model, in order, each as soon as it and all before it are transcribed.

        With `with_words`, they have the times of their words.

        Where too many requests wait, the first window is refused; those behind it wait too, since the recording was taken on.
        """
        async with aclosing(self._transcribed(self._windows(cut), model, with_words, is_taken_on=False)) as segments:
            async for segment in segments:
                yield segment

    async def pieces(self, cut: CutFile, model: str | None, with_words: bool) -> AsyncIterator[Piece | Segment]:
        """Yields what `segments` does, and before each segment its text, the first one's token by token.

        The joined texts are the recording's.
        """
        windows, has_text = self._windows(cut), False
        if (window := await anext(windows, None)) is None:
            return
        async with aclosing(self.model.pieces(window.pcm, model, with_words=with_words)) as pieces:
            async for piece in pieces:
                has_text = True if isinstance(piece, Piece) else has_text
                yield piece if isinstance(piece, Piece) else _segment(window, piece)
        async with aclosing(self._transcribed(windows, model, with_words, is_taken_on=True)) as segments:
            async for segment in segments:
                if text := segment.transcript["text"]:
                    yield Piece(f" {text}" if has_text else text, segment.transcript["tokens"])
                    has_text = True
                yield segment

    async def _windows(self, cut: CutFile) -> AsyncIterator[Window]:
        loop, threads = asyncio.get_running_loop(), self.threads if cut.is_long else None
        while (window := await loop.run_in_executor(threads, next, cut.windows, None)) is not None:
            yield window

    async def _transcribed(
        self, windows: AsyncIterator[Window], model: str | None, with_words: bool, is_taken_on: bool
    ) -> AsyncIterator[Segment]:
        """Asks for `windows_at_once` windows at a time; who closes the generator takes the questions back."""
        waiting: deque[tuple[Window, asyncio.Task]] = deque()
        try:
            async for window in windows:
                ask = self._transcript if is_taken_on else self.model.transcript
                waiting.append((window, asyncio.create_task(ask(window.pcm, model, with_words=with_words))))
                is_taken_on = True
                while waiting and (len(waiting) >= self.windows_at_once or waiting[0][1].done()):
                    window, answer = waiting.popleft()
                    yield _segment(window, await answer)
            while waiting:
                window, answer = waiting.popleft()
                yield _segment(window, await answer)
        finally:
            for _, answer in waiting:
                answer.cancel()
            await asyncio.gather(*(answer for _, answer in waiting), return_exceptions=True)

    async def _transcript(self, pcm: np.ndarray, model: str | None, with_words: bool) -> dict[str, Any]:
        async with self.places:
            return await self.model.transcript(pcm, model, waits_in_line=True, with_words=with_words)


def _segment(window: Window, transcript: dict[str, Any]) -> Segment:
    words = [as_word(word.later(window.offset_s)) for word in transcript["words"] or []]
    return Segment(window.start_s, window.end_s, transcript, words)
