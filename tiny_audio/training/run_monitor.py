"""What the driver tells Prometheus of a run.

A worker that dies must leave nothing behind that looks alive. So what goes on (rows, audio, waiting, operations) is counted
by the workers, in rank_monitor.py: when one dies, the rate of its counters falls to zero. What stays true until the next
logged line (step, loss, when the last checkpoint was made) is told here, for the driver outlives the workers and ends with
the run.
"""

from __future__ import annotations

import time

from tiny_audio.monitoring import metrics
from tiny_audio.monitoring.recorder import Recorder

LINE_GAUGES = {  # a key of a line of metrics.jsonl -> what it is called in Prometheus
    "step": metrics.STEP,
    "loss": metrics.LOSS,
    "learning_rate": metrics.LEARNING_RATE,
    "grad_norm": metrics.GRAD_NORM,
    "num_workers": metrics.NUM_WORKERS,
    "val_loss": metrics.VAL_LOSS,
    "val_wer": metrics.VAL_WER,
    "checkpoint_unix_time": metrics.CHECKPOINT_TIME,
}


class RunMonitor:
    """Says on the driver how a run is, and how it ended, while the context lasts.

    Args:
        step: the one that the run goes on from.
    """

    def __init__(self, run: str, num_steps: int, step: int):
        self.recorder = Recorder(run=run)
        now = time.time()
        begin = {metrics.PLANNED_STEPS: num_steps, metrics.STEP: step, metrics.LINE_TIME: now, metrics.CHECKPOINT_TIME: now}
        for metric, value in begin.items():
            self.recorder.set(metric, value)

    def __enter__(self) -> RunMonitor:
        return self

    def __exit__(self, error_type, *error) -> None:
        self.recorder.add(metrics.ENDS, 1, outcome="failed" if error_type else "finished")
        self.recorder.close()

    def log(self, line: dict[str, float]) -> None:
        """Takes over a line of metrics.jsonl."""
        self.recorder.set(metrics.LINE_TIME, time.time())
        for key, metric in LINE_GAUGES.items():
            if key in line:
                self.recorder.set(metric, line[key])
