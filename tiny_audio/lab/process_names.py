"""Parts of the names of our own processes, by which the drills, the benchmarks and the tests find them."""

from __future__ import annotations

DECODE_WORKER = "_decode_window"  # the function in data/stream.py that decode tasks run
TRAIN_DRIVER = "ray_jobs.train"
