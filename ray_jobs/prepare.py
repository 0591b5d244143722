"""Makes Parquet shards of synthetic speech in LoquaciousSet's columns: train, dev and three test sets. Needs the extra [data].

python -m ray_jobs.prepare ray_jobs/configs/synthetic.yaml num_train=500
"""

from ray_jobs.command import run_command, start_ray
from tiny_audio.lab.synthetic.config import PrepareConfig


def run(config: PrepareConfig) -> None:
    from tqdm import tqdm

    from tiny_audio.lab.synthetic.dataset import prepare

    start_ray()
    manifest = prepare(config, lambda files: tqdm(files, desc="shards", unit="file"))
    print(f"{config.output_dir}: {manifest['num_rows']} rows, {manifest['hours']:.2f} h in {manifest['num_files']} Parquet files")


if __name__ == "__main__":
    run_command(__doc__, PrepareConfig, run)
