"""Examines the cluster with a training's config, before money is spent: prints a table, and exits with 1 if a check fails.

It is given the words that `train` will be given. Workers' places are asked for as `train` asks, so an autoscaler starts the
GPU nodes; they go again when they are idle. Nothing is trained, and nothing stays on the storage.

python -m ray_jobs.doctor ray_jobs/configs/quickstart.yaml
ray job submit -- python -m ray_jobs.doctor CONFIG num_workers=16 data.decode_label=decode runs_dir=/mnt/shared/runs
"""

import sys

from ray_jobs.command import run_command, start_ray
from tiny_audio.config import TrainConfig


def run(config: TrainConfig) -> None:
    from tiny_audio.cluster.doctor import examine
    from tiny_audio.cluster.findings import finding_table, is_healthy

    num_gpus = (config.min_workers or config.num_workers) * config.use_gpu
    findings = examine(
        config, lambda: start_ray(config.num_workers, num_gpus), lambda line: print(f"... {line}", file=sys.stderr, flush=True)
    )
    print(finding_table(findings))
    sys.exit(not is_healthy(findings))


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
