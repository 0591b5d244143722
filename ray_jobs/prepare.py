"""Makes Parquet shards of your own recordings, split into train, dev and test, and reports on them.

python -m ray_jobs.prepare ray_jobs/configs/prepare.yaml "inputs=[recordings/]" output_dir=data/mine
python -m ray_jobs.prepare ray_jobs/configs/prepare.yaml "inputs=[calls.csv]" "columns={file: wav, words: text}" check=true

Inputs are folders of audio with transcripts beside it (clip.wav, clip.txt) or with a metadata.csv, manifests (.csv, .tsv,
.jsonl) of files and texts, globs of Parquet files, and datasets on the hub. The same command goes on where it stopped.
"""

from ray_jobs.command import run_command, start_ray
from tiny_audio.counts import rejects_line
from tiny_audio.data.prepare.config import PrepareConfig


def run(config: PrepareConfig) -> None:
    from tqdm import tqdm

    from tiny_audio.config import require
    from tiny_audio.data.prepare.prepare import REJECTS, REPORT, prepare
    from tiny_audio.data.prepare.report import report_table

    bar = lambda parts, total: tqdm(parts, total=total, desc="taken in", unit="part", mininterval=1)  # noqa: E731
    report = prepare(config, lambda line: print(line, flush=True), bar, start_ray)
    print(report_table(report))
    rejected = {name: source["rejected"] for name, source in report["sources"].items() if source["rejected"]}
    if rejected:
        print(f"rejected: {rejects_line(rejected)}; {config.output_dir}/{REJECTS} lists them")
    require(bool(report["splits"]), f"{config.output_dir}: no row of the inputs can be used")
    print(f"{config.output_dir}: {'looked at' if config.check else 'made'}; {REPORT} has the figures")


if __name__ == "__main__":
    run_command(__doc__, PrepareConfig, run)
