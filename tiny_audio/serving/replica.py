"""Runs the model behind the HTTP ingress: a Ray Serve deployment with one replica per GPU turns int16 clips into text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from ray import serve

from tiny_audio.audio.clip import SAMPLE_RATE, num_audio_tokens
from tiny_audio.serving.metrics import ClipMonitor
from tiny_audio.serving.pieces import Piece, Written

GROUPS = 14  # in which the slots fill, so that clips end apart, and their callers' next ones come while others run


@serve.deployment
class Transcriber:
    """Holds an engine that takes each clip as it comes: clips join and leave while others run.

    A clip whose caller left or waited too long is dropped between two steps.
    """

    def __init__(self, model: str, siblings: dict[str, str], device: str, num_threads: int, max_batch_size: int, fp8: bool):
        # Imported here, so that the ingress, which imports this module, needs no torch in its processes.
        import torch

        from tiny_audio.inference import transcriber as transcribe
        from tiny_audio.inference.vocabulary import token_bytes

        started = time.monotonic()
        torch.set_num_threads(num_threads)
        self.model = transcribe.Transcriber.load(model, device, fp8, max_batch_size, max(1, max_batch_size // GROUPS))
        for name, path in siblings.items():
            self.model.add(name, path)
        self.model.warm_up()
        self.model([np.zeros(SAMPLE_RATE, dtype=np.int16)])  # a model that cannot transcribe fails here
        self.model.engine.start()
        self.token_bytes = token_bytes(self.model.model.tokenizer, self.model.model.decoder.config.vocab_size)
        self.monitor = ClipMonitor(self.model.engine.scheduler, time.monotonic() - started, self.model.runner.fallback)

    def describe(self) -> dict[str, Any]:
        """Tells the ingress the longest clip that the model takes, and what the engine runs with."""
        return self.model.describe()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells Serve's autoscaling what the replica has in hand."""
        return self.monitor.in_hand()

    async def __call__(self, clip: np.ndarray, model: str | None = None, with_words: bool = False) -> dict[str, Any]:
        """Transcribes (S,) int16 samples at 16 kHz by the first model or a sibling of that name.

        With `with_words`, it finds the times of the words too, from the beginning of the clip.

        Returns:
            The transcript's text, and its tokens and how many there were of each kind.
        """
        request = self.model.request(clip, model=model)
        with self.monitor.clip(request):
            answer = await asyncio.wrap_future(self.model.engine.submit(request))
        return self._transcript(request, answer, with_words)

    async def stream(
        self, clip: np.ndarray, model: str | None = None, with_words: bool = False
    ) -> AsyncIterator[Piece | dict[str, Any]]:
        """Transcribes as a call does; yields pieces of the text while it is written, and at last what the call returns."""
        from tiny_audio.inference.deltas import Deltas

        loop, tokens = asyncio.get_running_loop(), asyncio.Queue()
        request = self.model.request(clip, lambda token: loop.call_soon_threadsafe(tokens.put_nowait, token), model)
        future = self.model.engine.submit(request)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(tokens.put_nowait, None))
        deltas, unsaid = Deltas(self.model.model.tokenizer), []
        try:
            with self.monitor.clip(request):
                while (token := await tokens.get()) is not None:
                    unsaid += self._written([token])
                    if delta := deltas.add([token.id]):
                        yield Piece(delta, unsaid)
                        unsaid = []
                answer = future.result()
            transcript = self._transcript(request, answer, with_words)
            if delta := deltas.rest(transcript["text"]):
                yield Piece(delta, unsaid)
            yield transcript
        finally:
            future.cancel()

    def _transcript(self, request, answer, with_words: bool) -> dict[str, Any]:
        transcript = self.model.transcript(answer, with_words)
        self.monitor.judged(transcript.doubtful)
        audio_tokens = num_audio_tokens(len(request.pcm), self.model.model.frames_per_token)
        tokens = {"audio": audio_tokens, "prompt": request.num_tokens - audio_tokens, "output": transcript.num_tokens}
        return {
            "text": transcript.text,
            "complete": transcript.complete,
            "looped": transcript.looped,
            "doubtful": transcript.doubtful,
            "words": transcript.words,
            "tokens": self._written(answer.tokens),
            "num_tokens": tokens,
        }

    def _written(self, tokens) -> list[Written]:
        return [Written(token.id, token.logprob, self.token_bytes[token.id]) for token in tokens]
