"""Trains a projector between two frozen backbones. The same command with the same name goes on from the last checkpoint.

python -m ray_jobs.train ray_jobs/configs/quickstart.yaml num_workers=1
ray job submit --working-dir . -- python -m ray_jobs.train ray_jobs/configs/quickstart.yaml
"""

from ray_jobs.command import run_command, start_ray
from tiny_audio.config import TrainConfig


def run(config: TrainConfig) -> None:
    from tiny_audio.train import train

    start_ray()
    print(f"model: {train(config)}")


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
