"""Runs the whole pipeline on this machine, from making data to a served transcript. `make quickstart` runs this.

python -m ray_jobs.quickstart ray_jobs/configs/quickstart.yaml
"""

from tqdm import tqdm

from ray_jobs.command import run_command
from tiny_audio.config import TrainConfig


def run(config: TrainConfig) -> None:
    from tiny_audio.lab.quickstart import quickstart

    summary = quickstart(config, lambda files: tqdm(files, desc="shards", unit="file"))
    print(
        f"\nWER on unseen sentences {summary['wer_test']:.2%}, unseen voices {summary['wer_unseen_voices']:.2%}, "
        f"unseen words {summary['wer_unseen_words']:.2%}; untrained {summary['wer_untrained']:.0%}\n"
        f"said:  {summary['http_reference']}\nheard: {summary['http_transcript']}\n"
        f"report: {config.run_dir / 'report.html'} ({summary['total_seconds']:.0f} s in all)"
    )


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
