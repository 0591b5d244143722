"""Trains and evaluates the quickstart with the seeds 0 to 4, and prints a table that shows how much luck is in one run.

python -m ray_jobs.seeds ray_jobs/configs/quickstart.yaml
"""

from tqdm import tqdm

from ray_jobs.command import run_command
from tiny_audio.config import TrainConfig

COLUMNS = {
    "wer_test": "unseen sentences",
    "wer_unseen_voices": "unseen voices",
    "wer_unseen_words": "unseen words",
    "wer_untrained": "untrained",
    "wer_shuffled_audio": "shuffled audio",
}


def run(config: TrainConfig) -> None:
    from tiny_audio.lab.quickstart import run_seeds

    results = run_seeds(config, lambda files: tqdm(files, desc="shards", unit="file"))
    print("\n| seed | " + " | ".join(COLUMNS.values()) + " | silence and noise | training, s |")
    print("| --- " * (len(COLUMNS) + 3) + "|")
    for result in results:
        rates = " | ".join(f"{result[name]:.2%}" for name in COLUMNS)
        print(f"| {result['seed']} | {rates} | {result['silence_text'] or 'empty'} | {result['train_seconds']:.0f} |")


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
