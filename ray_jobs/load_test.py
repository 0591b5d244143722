"""Puts load on a transcription server, ours or any other that speaks OpenAI's API, and shows how it bears up.

python -m ray_jobs.load_test ray_jobs/configs/load_test.yaml "clients=[1, 8, 32, 128]"
python -m ray_jobs.load_test ray_jobs/configs/load_test.yaml "inputs=[calls/*.mp3]" "clients=[]" "requests_per_s=[5, 20]"
python -m ray_jobs.load_test ray_jobs/configs/load_test.yaml "servers={http://a:8000/v1: tiny_audio, http://b:8000/v1: whisper-1}"

Prints a table and leaves load_test.json and load_test.png. A key is taken from the environment's OPENAI_API_KEY. Run it on a
machine of its own where you can: beside the server, it takes CPU from what it measures.
"""

import json

from ray_jobs.command import run_command
from tiny_audio.lab.load_test.config import LoadTestConfig


def run(config: LoadTestConfig) -> None:
    from tiny_audio.lab.load_test.clips import uploads
    from tiny_audio.lab.load_test.load import measure
    from tiny_audio.lab.load_test.report import draw, load_name, table

    clips, rows = uploads(config), []
    mean_s = sum(clip.duration_s for clip in clips) / len(clips)
    print(
        f"{len(clips)} clips of {mean_s:.1f} s on average; {config.warm_up_s + config.duration_s:g} s for each load", flush=True
    )
    for row in measure(config, clips):
        rows.append({**row, "mean_clip_s": mean_s})
        print(f"{row['model']}, {load_name(row)}: {row['audio_s_per_s']:.1f} s of audio a second, {row['outcomes']}", flush=True)
    folder = config.output_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load_test.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, folder / "load_test.png")
    print(f"\n{table(rows)}\n\nwritten: {folder}/load_test.json and load_test.png")


if __name__ == "__main__":
    run_command(__doc__, LoadTestConfig, run)
