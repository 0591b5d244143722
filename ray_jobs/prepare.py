"""Makes LoquaciousSet-shaped Parquet shards of synthesised speech: train, dev and three test sets. Needs the extra [data].

python -m ray_jobs.prepare ray_jobs/configs/synthetic.yaml num_train=500
"""

from tqdm import tqdm

from ray_jobs.command import run_command, start_ray
from tiny_audio.lab.synthetic.dataset import PrepareConfig, prepare


def run(config: PrepareConfig) -> None:
    start_ray()
    made = prepare(config, lambda files: tqdm(files, desc="shards", unit="file"))
    print(f"{config.output_dir}: {made['num_rows']} rows, {made['hours']:.2f} h in {made['num_files']} Parquet files")


if __name__ == "__main__":
    run_command(__doc__, PrepareConfig, run)
