"""What each worker tells Prometheus: it counts what it trains."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from tiny_audio.data.batch import WorkerBatch
from tiny_audio.model.flops import FlopCounter, peak_flops
from tiny_audio.model.packing import PackedBatch
from tiny_audio.monitoring import metrics
from tiny_audio.monitoring.recorder import Recorder
from tiny_audio.run.rejects import NON_FINITE, SkippedRow


class RankMonitor:
    """Counts what a worker trains.

    Args:
        model: an `ASRModel` with whole weights; ZeRO 3 may share them out later.
    """

    def __init__(self, run: str, rank: int, model: PreTrainedModel, device: torch.device):
        self.recorder, self.flop = Recorder(run=run, rank=str(rank)), FlopCounter(model)
        peak = peak_flops(device)
        if peak:
            self.recorder.set(metrics.PEAK_FLOPS, peak)

    def count(self, batch: WorkerBatch, micro_batches: list[PackedBatch], wait_s: float) -> None:
        """Counts a worker's share of a trained step, and the rejects that came with it."""
        self.recorder.add(metrics.ROWS, sum(bool(clip.text) for clip in batch.clips))
        self.recorder.add(metrics.AUDIO_S, sum(clip.duration_s for clip in batch.clips))
        self.recorder.add(metrics.DATA_WAIT_S, wait_s)
        self.recorder.add(metrics.FLOP, sum(self.flop.of_batch(part) for part in micro_batches))
        for reject in batch.rejects:
            self.recorder.add(metrics.REJECTS, 1, source=reject.source, reason=reject.reason)

    def count_skipped(self, rows: list[SkippedRow]) -> None:
        """Counts rows that were read, and then could not be trained, as rejects."""
        for row in rows:
            self.recorder.add(metrics.REJECTS, 1, source=row.source, reason=NON_FINITE)
