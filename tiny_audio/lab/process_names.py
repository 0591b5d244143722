"""Parts of the names that Ray gives to processes, by which the drills, the benchmarks and the tests find them."""

from __future__ import annotations

TRAIN_WORKER = "RayTrainWorker"
DECODE_WORKER = "_decode_window"  # the function in data/stream.py that decode tasks run
TRAIN_DRIVER = "ray_jobs.train"
CONTROLLER = "TrainController"
SPLITTER = "SplitCoordinator"
