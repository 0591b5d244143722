"""Trains a projector between two frozen backbones. The same command with the same name resumes from the last checkpoint.

python -m ray_jobs.train ray_jobs/configs/quickstart.yaml num_workers=1
ray job submit --working-dir . -- python -m ray_jobs.train CONFIG runs_dir=/shared/runs data.train=/shared/train/*.parquet
"""

from ray_jobs.command import run_command, start_ray
from tiny_audio.config import TrainConfig
from tiny_audio.counts import rejects_line


def run(config: TrainConfig) -> None:
    from tiny_audio.training.driver import train

    training = train(config, lambda: start_ray(config.num_workers, (config.min_workers or config.num_workers) * config.use_gpu))
    if training["rejects"]:
        print("rejected: " + rejects_line(training["rejects"]))
    if training["left_out"]:
        print("left out by source_weights: " + ", ".join(f"{n} of {name}" for name, n in sorted(training["left_out"].items())))
    print(f"the run is over: {training['end']}; {training['num_rows']} rows")
    print(f"model: {config.run_dir / 'model'}, of step {training['exported_step']}")


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
