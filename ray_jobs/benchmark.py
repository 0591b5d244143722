"""Measures this machine's GPUs on models of the real size, with random weights and noise for speech.

python -m ray_jobs.benchmark ray_jobs/configs/benchmark.yaml part=step

Prints the figures as they come, and writes them as JSON. "The seed" is the training script that this project began with.
The parts:

  step        one GPU: the seed's step, ours in its variants
  memory      one GPU: budgets for 24 GB, 80 GB and all of it
  profile     one GPU: where a step's time goes, and a trace
  seed_job    one GPU: the seed's job through ray job submit
  scale       all GPUs: speed by their number and ZeRO stage
  restart     all GPUs: a worker is killed, and what that costs
  fp8         one GPU: learning in FP8 beside bfloat16
  transcribe  one GPU: the engine, generate, the seed's snippet
  replicas    all GPUs: the service with a replica on each
  data        no GPU: steps a second of the data stream alone
  plan        no GPU: planning and resuming at 10 million rows
  soak        no GPU: memory over a long training
"""

import json
from importlib import import_module

from ray_jobs.command import run_command
from tiny_audio.lab.benchmarks.config import BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    output = config.output_folder / f"{config.part}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in import_module(f"tiny_audio.lab.benchmarks.parts.{config.part}").measure(config):
        rows.append(row)
        output.write_text(json.dumps(rows, indent=1) + "\n")  # each time: a part that is cut off keeps what it measured
        shown = (f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items())
        print("  ".join(shown), flush=True)
    print(f"written: {output}")


if __name__ == "__main__":
    run_command(__doc__, BenchmarkConfig, run)
