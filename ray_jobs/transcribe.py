"""Transcribes audio files and folders to JSON lines: {"path", "text", "duration_s", "complete", "looped"} or {"path", "error"}.

python -m ray_jobs.transcribe ray_jobs/configs/transcribe.yaml "inputs=[clip.wav, recordings/]" output=transcripts.jsonl
"""

from tqdm import tqdm

from ray_jobs.command import run_command, start_ray
from tiny_audio.inference.files import TranscribeConfig, transcribe_files


def run(config: TranscribeConfig) -> None:
    bar = lambda rows, total: tqdm(rows, total=total, desc="transcribed", unit="file")  # noqa: E731
    done, rejected = transcribe_files(config, bar, lambda: start_ray(num_gpus=config.num_actors * config.use_gpu))
    print(f"{config.output}: {done} transcribed, {rejected} rejected (their lines say why)")


if __name__ == "__main__":
    run_command(__doc__, TranscribeConfig, run)
