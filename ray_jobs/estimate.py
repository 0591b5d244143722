"""Estimates a training from measured speeds: rows, steps, hours, GPU hours, dollars, decode nodes and storage bandwidth.

It is given the words that `train` will be given, and reads the footers of the training shards; no Ray and no GPU is
needed. Each line names the figure that it comes from: a part of ray_jobs/benchmarks/h200.json.

python -m ray_jobs.estimate ray_jobs/configs/loquacious_small.yaml num_workers=8 usd_per_gpu_hour=4
"""

import json
import sys
from pathlib import Path

from ray_jobs.command import run_command
from tiny_audio.cluster.config import EstimateConfig

FIGURES = Path(__file__).resolve().with_name("benchmarks") / "h200.json"


def run(config: EstimateConfig) -> None:
    from tiny_audio.cluster.estimate import cautions, estimate, measure_shards

    figures = json.loads(FIGURES.read_text())
    shards = measure_shards(config, lambda line: print(f"... {line}", file=sys.stderr, flush=True))
    lines = estimate(config, shards, figures)
    for line in lines:
        print(f"{line.name:13} {line.value:38} {line.source and f'({line.source})'}".rstrip())
    for caution in cautions(config, figures):
        print(f"note: {caution}")


if __name__ == "__main__":
    run_command(__doc__, EstimateConfig, run)
