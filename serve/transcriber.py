"""The model behind the HTTP ingress: a Ray Serve deployment, one replica per GPU, that batches clips across clients."""

import asyncio
from collections import deque

import numpy as np
from ray import serve
from ray.serve import metrics

from tiny_audio.audio.clip import SAMPLE_RATE


@serve.deployment
class Transcriber:
    """Transcribes clips of many callers together.

    Clips that arrive while the model is busy wait, and the next batch takes them all, so batches grow with the load.
    `@serve.batch` would close a batch by the clock even then: under a steady load it runs batches of one, ever later.
    """

    def __init__(self, model: str, device: str, num_threads: int, max_batch_size: int, batch_wait_s: float):
        # Imported here because the ingress imports this module, and its processes need no torch.
        import torch

        from tiny_audio.inference import transcriber as transcribe

        torch.set_num_threads(num_threads)
        self.model = transcribe.Transcriber.load(model, device)
        self.model([np.zeros(SAMPLE_RATE, dtype=np.int16)])  # warms the device; a model that cannot transcribe fails now
        self.max_batch_size = max_batch_size
        self.batch_wait_s = batch_wait_s
        self.waiting: deque[tuple[np.ndarray, asyncio.Future]] = deque()
        self.worker: asyncio.Task | None = None
        self.largest_batch = 0
        self.batch_rows = metrics.Histogram(
            "tiny_audio_batch_rows", "Clips that the model transcribed together.", boundaries=[1, 2, 4, 8, 16, 32, 64]
        )

    def describe(self) -> dict[str, float]:
        """Returns what the ingress must know about the model, and the size of the largest batch so far."""
        return {"max_duration_s": self.model.max_duration_s, "largest_batch": self.largest_batch}

    async def __call__(self, clip: np.ndarray) -> str:
        """Transcribes one clip: (S,) int16 at 16 kHz."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((clip, future))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Runs batches until no clip waits."""
        await asyncio.sleep(self.batch_wait_s)  # lets a burst gather while the model is idle
        while self.waiting:
            oldest = [self.waiting.popleft() for _ in range(min(self.max_batch_size, len(self.waiting)))]
            batch = [(clip, future) for clip, future in oldest if not future.done()]  # done means that the caller left
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[np.ndarray, asyncio.Future]]) -> None:
        self.largest_batch = max(self.largest_batch, len(batch))
        self.batch_rows.observe(len(batch))
        results = await self._transcribe([clip for clip, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _transcribe(self, clips: list[np.ndarray]) -> list[str | Exception]:
        """Returns each clip's text or error; if a batch fails, its clips run one by one, so that one cannot fail the others."""
        try:
            # A thread, so that the replica can take calls and answer health checks meanwhile.
            return [transcript.text for transcript in await asyncio.to_thread(self.model, clips)]
        except Exception as error:
            if len(clips) == 1:
                return [error]
        return [(await self._transcribe([clip]))[0] for clip in clips]
