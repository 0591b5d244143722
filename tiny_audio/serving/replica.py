"""Runs the model behind the HTTP ingress: a Ray Serve deployment with one replica per GPU turns int16 clips into text."""

import asyncio
import time
from typing import Any

import numpy as np
from ray import serve

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.serving.metrics import ClipMonitor


@serve.deployment
class Transcriber:
    """Holds an engine that takes each clip as it comes: clips join and leave while others run.

    A clip whose caller left or waited too long is dropped between two steps.
    """

    def __init__(self, model: str, device: str, num_threads: int, max_batch_size: int, fp8: bool):
        # Imported here, so that the ingress, which imports this module, needs no torch in its processes.
        import torch

        from tiny_audio.inference import transcriber as transcribe

        started = time.monotonic()
        torch.set_num_threads(num_threads)
        self.model = transcribe.Transcriber.load(model, device, fp8, max_batch_size)
        self.model.warm_up()
        self.model([np.zeros(SAMPLE_RATE, dtype=np.int16)])  # a model that cannot transcribe fails here
        self.model.engine.start()
        self.monitor = ClipMonitor(self.model.engine.scheduler, time.monotonic() - started, self.model.runner.fallback)

    def describe(self) -> dict[str, Any]:
        """Tells the ingress the longest clip that the model takes, and what the engine runs with."""
        return self.model.describe()

    async def __call__(self, clip: np.ndarray) -> dict[str, Any]:
        """Transcribes (S,) int16 samples at 16 kHz; returns the fields of the `Transcript`."""
        request = self.model.request(clip)
        with self.monitor.clip(request):
            answer = await asyncio.wrap_future(self.model.engine.submit(request))
        return vars(self.model.transcript(answer))
