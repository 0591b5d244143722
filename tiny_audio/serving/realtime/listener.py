"""Hears many live streams together: a step of the voice activity detector costs nearly as much for one stream as for ten."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tiny_audio.audio.vad import StreamState, speech_detector

STREAMS_AT_ONCE = 64  # more are no faster: 840 times real time on one core, against 210 for a stream alone


@dataclass(frozen=True)
class Waiting:
    """Holds what a stream asks: its next (S,) samples, the state before them, and where the answer goes."""

    samples: np.ndarray
    state: StreamState
    heard: asyncio.Future


class Listener:
    """Has the detector hear what all streams of this process have ready, one batch at a time, on a thread of its own: those of
    the process may be busy with uploads."""

    def __init__(self):
        self.thread = ThreadPoolExecutor(1)
        self.waiting: list[Waiting] = []
        self.work: asyncio.Task | None = None

    async def hear(self, samples: np.ndarray, state: StreamState) -> tuple[np.ndarray, StreamState]:
        """Returns the (T,) probabilities of speech in the next T * FRAME_SAMPLES samples of a stream, and the state then."""
        one = Waiting(samples, state, asyncio.get_running_loop().create_future())
        self.waiting.append(one)
        if self.work is None or self.work.done():
            self.work = asyncio.create_task(self._work())
        return await one.heard

    async def _work(self) -> None:
        while self.waiting:
            waiting, self.waiting = self.waiting, []
            for batch in _batches(waiting):
                try:
                    answers = await asyncio.get_running_loop().run_in_executor(self.thread, _heard_together, batch)
                except Exception as error:
                    answers = [error] * len(batch)
                for one, answer in zip(batch, answers, strict=True):
                    if one.heard.done():  # its client left
                        continue
                    if isinstance(answer, Exception):
                        one.heard.set_exception(answer)
                    else:
                        one.heard.set_result(answer)


def _batches(waiting: list[Waiting]) -> list[list[Waiting]]:
    """Puts streams together that ask for as many samples, for a batch is a rectangle."""
    of_length: dict[int, list[Waiting]] = {}
    for one in waiting:
        of_length.setdefault(len(one.samples), []).append(one)
    return [
        alike[start : start + STREAMS_AT_ONCE] for alike in of_length.values() for start in range(0, len(alike), STREAMS_AT_ONCE)
    ]


def _heard_together(batch: list[Waiting]) -> list[tuple[np.ndarray, StreamState]]:
    parts = [(one.state.context, one.state.hidden, one.state.cell) for one in batch]
    state = StreamState(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
    probabilities, state = speech_detector()(np.stack([one.samples for one in batch]), state)
    rows = [slice(row, row + 1) for row in range(len(batch))]
    return [
        (probabilities[row][0], StreamState(*(part[row].copy() for part in (state.context, state.hidden, state.cell))))
        for row in rows
    ]
