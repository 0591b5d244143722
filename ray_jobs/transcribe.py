"""Transcribes audio files to JSON lines, text, CSV or subtitles, as the output's suffix says.

python -m ray_jobs.transcribe ray_jobs/configs/transcribe.yaml "inputs=[clip.wav, recordings/]" output=transcripts.jsonl
python -m ray_jobs.transcribe ray_jobs/configs/transcribe.yaml "inputs=['s3://bucket/calls/*.mp3']" "output=subtitles/*.srt"

A bad file is a line with its reason. The same command goes on where it stopped; the output appears when all files are done.
"""

from tqdm import tqdm

from ray_jobs.command import run_command, start_ray
from tiny_audio.data.audio_files import find_audio
from tiny_audio.inference.config import TranscribeConfig
from tiny_audio.storage import require_model


def run(config: TranscribeConfig) -> None:
    paths = find_audio(config.inputs)
    require_model(config.model)  # at once: the next line takes seconds
    from tiny_audio.inference.files import transcribe_files

    bar = lambda rows, total: tqdm(rows, total=total, desc="transcribed", unit="file")  # noqa: E731
    start = lambda: start_ray(num_gpus=config.num_actors * config.use_gpu)  # noqa: E731
    num_done, num_rejected, num_looped = transcribe_files(config, paths, bar, start)
    counts = f"{num_done} transcribed, {num_looped} of which looped, {num_rejected} rejected (their lines say why)"
    print(f"{config.output}: {counts}")


if __name__ == "__main__":
    run_command(__doc__, TranscribeConfig, run)
