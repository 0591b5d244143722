"""Gauges that follow a function, in one process; test_prometheus.py has what Prometheus then sees."""

import time

from tiny_audio.monitoring import recorder as recorder_module
from tiny_audio.monitoring.metrics import LOSS, STEP
from tiny_audio.monitoring.recorder import Recorder


def test_a_gauge_that_cannot_be_read_ends_no_other(monkeypatch):
    monkeypatch.setattr(recorder_module, "REFRESH_S", 0.02)
    recorder, reads = Recorder(run="a"), []
    recorder.set(LOSS, lambda: 1 / 0)
    recorder.set(STEP, lambda: reads.append(time.monotonic()) or 1.0)
    time.sleep(0.5)
    recorder.close()
    assert len(reads) > 3
    assert [metric for metric, _ in recorder.followed] == [STEP]
