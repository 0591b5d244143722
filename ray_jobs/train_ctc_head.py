"""Trains a CTC head for a model that was trained: word times, and a second opinion of texts and labels.

It needs no cluster: it runs in this process, in minutes on CPUs.

  python -m ray_jobs.train_ctc_head ray_jobs/configs/ctc_head.yaml model=runs/NAME/model "data=[data/mine/train/*.parquet]"
"""

from tqdm import tqdm

from ray_jobs.command import run_command
from tiny_audio.storage import require_model
from tiny_audio.training.ctc_head_config import CTCHeadConfig


def run(config: CTCHeadConfig) -> None:
    require_model(config.model)  # at once: the next line takes seconds
    from tiny_audio.training.ctc_head import train_ctc_head

    facts = train_ctc_head(config, lambda clips: tqdm(clips, desc="encoded", unit="clip", mininterval=1))
    print(f"CTC head: {facts['num_parameters']:,} parameters, of {facts['num_clips']} clips, {facts['hours']:.2f} h")
    print(f"{facts['encoding_s']:.0f} s to encode them, {facts['training_s']:.0f} s to train")
    print(f"{facts['letter_error_rate']:.1%} of the letters of {facts['num_held_out']} other clips are wrong")
    print(f"written into {config.model}")


if __name__ == "__main__":
    run_command(__doc__, CTCHeadConfig, run)
