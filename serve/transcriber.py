"""The model behind the HTTP ingress: int16 clips to text, batched across clients. A Ray Serve deployment, one a GPU."""

import asyncio
from collections import deque

import numpy as np
from ray import serve
from ray.serve import metrics

from tiny_audio.audio.clip import SAMPLE_RATE


@serve.deployment
class Transcriber:
    """Transcribes clips of many callers together.

    Clips that arrive while the model is busy wait, and its next batch takes them all, so batches grow with the load.
    `@serve.batch` closes its batches by the clock even then: a steady load makes it run batches of one, ever later.
    """

    def __init__(self, model: str, device: str, num_threads: int, max_batch_size: int, batch_wait_s: float):
        # Here, so that the ingress, which imports this module, needs no torch in its processes.
        import torch

        from tiny_audio.inference import transcriber as transcribe

        torch.set_num_threads(num_threads)
        self.model = transcribe.Transcriber.load(model, device)
        self.model([np.zeros(SAMPLE_RATE, dtype=np.int16)])  # a model that cannot transcribe fails here; warms the device
        self.max_batch_size = max_batch_size
        self.batch_wait_s = batch_wait_s
        self.waiting: deque[tuple[np.ndarray, asyncio.Future]] = deque()
        self.worker: asyncio.Task | None = None
        self.largest_batch = 0
        self.batch_rows = metrics.Histogram(
            "tiny_audio_batch_rows", "Clips that the model transcribed together.", boundaries=[1, 2, 4, 8, 16, 32, 64]
        )

    def describe(self) -> dict[str, float]:
        """What the ingress must know of the model, and the most clips that ran together so far."""
        return {"max_duration_s": self.model.max_duration_s, "largest_batch": self.largest_batch}

    async def __call__(self, clip: np.ndarray) -> str:
        """(S,) int16 at 16 kHz -> its transcript."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((clip, future))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Runs batches until nobody waits."""
        await asyncio.sleep(self.batch_wait_s)  # an idle model lets a burst gather
        while self.waiting:
            taken = [self.waiting.popleft() for _ in range(min(self.max_batch_size, len(self.waiting)))]
            batch = [(clip, future) for clip, future in taken if not future.done()]  # done: its caller left
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
        """Each clip's text or error. Where a batch fails, its clips run alone, so that one cannot fail the others."""
        try:
            # In a thread, so that the replica goes on to take calls and answer health checks.
            return [transcript.text for transcript in await asyncio.to_thread(self.model, clips)]
        except Exception as error:
            if len(clips) == 1:
                return [error]
        return [(await self._transcribe([clip]))[0] for clip in clips]
