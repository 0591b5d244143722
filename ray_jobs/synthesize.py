"""Makes Parquet shards of synthetic speech in LoquaciousSet's columns: train, dev and test sets. Needs the extra [data].

python -m ray_jobs.synthesize ray_jobs/configs/synthetic.yaml num_train=500
python -m ray_jobs.synthesize ray_jobs/configs/synthetic.yaml texts=sentences.txt output_dir=data/made num_broken=0
"""

from ray_jobs.command import run_command, start_ray
from tiny_audio.lab.synthetic.config import SyntheticConfig


def run(config: SyntheticConfig) -> None:
    from tqdm import tqdm

    from tiny_audio.lab.synthetic.dataset import make_dataset

    start_ray()
    manifest = make_dataset(config, lambda files: tqdm(files, desc="shards", unit="file"))
    print(f"{config.output_dir}: {manifest['num_rows']} rows, {manifest['hours']:.2f} h in {manifest['num_files']} Parquet files")


if __name__ == "__main__":
    run_command(__doc__, SyntheticConfig, run)
