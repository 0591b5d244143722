"""How the ingress asks the model's replicas: within a time, and again where a replica died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from tiny_audio.serving.failures import UNAVAILABLE, said_as_api_error
from tiny_audio.serving.pieces import Piece

RETRY_PAUSES_S = (0.1, 0.5, 2.0)  # between attempts; a transcription may be asked for any number of times
LINE_PAUSE_S = 0.5  # until a clip that waits in line looks again whether there is room


class ModelCalls:
    """Asks replicas of the model, each question for `timeout_s` at most, waiting included."""

    def __init__(self, transcriber: DeploymentHandle, timeout_s: float):
        self.transcriber, self.timeout_s = transcriber, timeout_s
        self._description: dict[str, Any] | None = None

    async def description(self) -> dict[str, Any]:
        """Returns what the replicas say of themselves; waits until a model is loaded the first time."""
        if self._description is None:
            self._description = await self._first_of(self.transcriber.describe)
        return self._description

    async def max_duration_s(self) -> float:
        """Returns the longest clip that the model takes, in seconds."""
        return (await self.description())["max_duration_s"]

    async def transcript(
        self, clip: np.ndarray, model: str | None = None, waits_in_line: bool = False, with_words: bool = False
    ) -> dict[str, Any]:
        """Returns a replica's transcript of (S,) int16 samples at 16 kHz, by the first model or the one of `Arguments.models`.

        A clip that finds too many others waiting is refused; with `waits_in_line` it tries again until its time is over.
        """
        return await self._first_of(self.transcriber, clip, model, with_words, waits_in_line=waits_in_line)

    async def pieces(
        self, clip: np.ndarray, model: str | None = None, waits_in_line: bool = False, with_words: bool = False
    ) -> AsyncIterator[Piece | dict[str, Any]]:
        """Yields the text of a clip piece by piece as it is written, and at last the transcript.

        With `waits_in_line`, a clip that finds too many others waiting tries again, as `transcript` does. A replica that dies
        before its first piece is replaced by another; later, the error is raised.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timeout_s
        pauses_s, piece = iter(RETRY_PAUSES_S), None
        with said_as_api_error():
            while True:
                answer = self.transcriber.options(stream=True).stream.remote(clip, model, with_words)
                try:
                    while piece := await asyncio.wait_for(anext(answer, None), until - loop.time()):
                        yield piece
                    return
                except UNAVAILABLE:
                    if piece or (pause_s := next(pauses_s, None)) is None:
                        raise
                    await asyncio.sleep(pause_s)
                except BackPressureError:
                    if not waits_in_line or loop.time() > until:
                        raise
                    await asyncio.sleep(LINE_PAUSE_S)
                finally:
                    answer.cancel()

    async def _first_of(self, method, *arguments, waits_in_line: bool = False) -> Any:
        """Returns the first answer that a replica gives."""
        pauses_s = iter(RETRY_PAUSES_S)
        with said_as_api_error():
            async with asyncio.timeout(self.timeout_s):
                while True:
                    answer = method.remote(*arguments)
                    try:
                        return await answer
                    except asyncio.CancelledError:  # the time is over, or the client left
                        answer.cancel()
                        raise
                    except UNAVAILABLE:
                        if (pause_s := next(pauses_s, None)) is None:
                            raise
                        await asyncio.sleep(pause_s)
                    except BackPressureError:
                        if not waits_in_line:
                            raise
                        await asyncio.sleep(LINE_PAUSE_S)
