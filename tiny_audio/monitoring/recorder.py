"""Records metrics with Ray, whose agent on the node offers them to Prometheus."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

from tiny_audio.monitoring.metrics import Metric

log = logging.getLogger(__name__)

# Ray forgets a gauge 20 s after it was last set, though its process lives on: two of its intervals of 10 s between exports.
REFRESH_S = 2.0


class Recorder:
    """Records metrics under labels that they share. A gauge keeps its last value for as long as the recorder is open.

    Args:
        labels: values of labels, by name, for every metric that has such a label.
    """

    def __init__(self, **labels: str):
        self.labels = labels
        self.made: dict[Metric, Counter | Gauge | Histogram] = {}
        self.followed: dict[tuple[Metric, tuple[tuple[str, str], ...]], Callable[[], float]] = {}  # gauges by their labels
        self.closed = threading.Event()
        self.thread: threading.Thread | None = None  # sets the gauges again, once there is one

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        """Adds to a counter; zero adds nothing."""
        if value > 0:
            self._made(metric).inc(float(value), self._tags(metric, labels))

    def set(self, metric: Metric, value: float | Callable[[], float], **labels: str) -> None:
        """Sets a gauge, or lets it follow a function. While the value is not finite there is no gauge: Ray exports none."""
        self.followed[metric, tuple(self._tags(metric, labels).items())] = value if callable(value) else lambda: value
        self._refresh()
        if self.thread is None:
            self.thread = threading.Thread(target=self._keep, daemon=True, name="gauges")
            self.thread.start()

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Adds a value to a histogram."""
        self._made(metric).observe(float(value), self._tags(metric, labels))

    def close(self) -> None:
        """Lets the gauges end: Prometheus sees them for 20 s more."""
        self.closed.set()

    def _tags(self, metric: Metric, labels: dict[str, str]) -> dict[str, str]:
        return {name: (self.labels | labels)[name] for name in metric.labels}

    def _made(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric not in self.made:
            kind = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}[metric.kind]
            bounds = {"boundaries": list(metric.bounds)} if metric.bounds else {}
            self.made[metric] = kind(metric.name, description=metric.meaning, tag_keys=metric.labels, **bounds)
        return self.made[metric]

    def _keep(self) -> None:
        while not self.closed.wait(REFRESH_S):
            self._refresh()

    def _refresh(self) -> None:
        for (metric, tags), value in list(self.followed.items()):
            try:
                self._made(metric).set(float(value()), dict(tags))
            except Exception:  # one that cannot be read must not end the others
                log.exception("the metric %s is no longer recorded", metric.name)
                del self.followed[metric, tags]
