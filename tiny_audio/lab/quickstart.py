"""The whole pipeline on one machine, as `make quickstart` runs it: make data, train, evaluate, serve, report.

Training and evaluation go through `ray job submit`, and serving through `serve run`, as on any cluster. The cluster is
this process's own, and ends with it.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import requests

from tiny_audio.audio.decode import decode
from tiny_audio.config import BACKBONES, PACKAGE_ROOT, TrainConfig, absolute, require
from tiny_audio.config_files import save_config
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.shards import read_rows
from tiny_audio.evaluation.report import worst_utterances, write_report
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.ray_cli import Cluster, submit_job
from tiny_audio.lab.serve_cli import serve_app
from tiny_audio.lab.synthetic.config import SyntheticConfig
from tiny_audio.lab.synthetic.dataset import MANIFEST, encode_audio, make_dataset
from tiny_audio.storage import is_local, with_absolute_paths

NUM_SEEDS = 5
SERVED_ROW = "sentences-00000"  # of the test sets: the clip that the server transcribes


def train_job(cluster: Cluster, config: TrainConfig) -> None:
    """Trains by a job, unless the run has ended.

    Raises:
        ConfigError: the run was trained with other settings, data or backbones.
    """
    result, submitted = config.run_dir / "training.json", config.run_dir / "submitted.yaml"
    before = submitted.read_text() if submitted.is_file() else None
    save_config(config, submitted)  # the job runs in a copy of this folder, without runs/
    if before is not None and result.is_file():
        inputs = [Path(SyntheticConfig().output_dir) / MANIFEST, *(PACKAGE_ROOT / BACKBONES).rglob("*.safetensors")]
        fresh = all(path.stat().st_mtime < result.stat().st_mtime for path in inputs)
        remedy = f"{config.run_dir} was trained with other settings, data or backbones; delete it, or choose another name"
        require(fresh and before == submitted.read_text(), remedy)
        print(f"{config.run_dir}: trained already; delete the folder to train again")
        return
    submit_job(cluster, "python", "-m", "ray_jobs.train", str(submitted))


def evaluate_job(cluster: Cluster, config: TrainConfig, data: str) -> dict:
    """Evaluates by a job, unless evaluation.json is newer than the model; returns what it holds."""
    result = config.run_dir / "evaluation.json"
    model = config.run_dir / "model"
    if not result.is_file() or result.stat().st_mtime < (model / "config.json").stat().st_mtime:
        keys = [f"model={model}", f"output_dir={config.run_dir}", f"data={data}", f"seed={config.seed}"]
        submit_job(cluster, "python", "-m", "ray_jobs.evaluate", "ray_jobs/configs/evaluate.yaml", *keys)
    return json.loads(result.read_text())


def ask_server(url: str, clip: bytes) -> str:
    """Posts a clip in the form that `curl -F` sends; returns the transcript."""
    print(f"POST as by: curl -F file=@clip.wav -F model=tiny_audio {url}/v1/audio/transcriptions", flush=True)
    form = {"files": {"file": ("clip.wav", clip, "audio/wav")}, "data": {"model": "tiny_audio"}}
    response = requests.post(f"{url}/v1/audio/transcriptions", timeout=60, **form)
    response.raise_for_status()
    print(response.text)
    return response.json()["text"]


def _rows_by_id(pattern: str, ids: set[str]) -> dict[str, dict]:
    groups = read_footers(list_shards(pattern))
    return {row["ID"]: row for part in plan_pass(groups) for row in read_rows(part) if row["ID"] in ids}


def as_wav(row: dict) -> bytes:
    """Converts a row's audio, however it is stored, to a WAV that every browser plays."""
    return encode_audio(decode(row["wav"]), "wav")


def summarize(config: TrainConfig, evaluation: dict, transcript: str, reference: str) -> dict:
    """Returns the headline figures of a run; WERs are fractions."""
    sets, controls = evaluation["sets"], evaluation["controls"]
    training = json.loads((config.run_dir / "training.json").read_text())
    return {
        "wer_test": sets["sentences"]["wer"],
        "wer_unseen_voices": sets["voices"]["wer"],
        "wer_unseen_words": sets["words"]["wer"],
        "wer_untrained": controls["untrained"]["wer"],
        "wer_shuffled_audio": controls["shuffled_audio"]["wer"],
        "silence_text": " ".join(clip["text"] for clip in evaluation["silence"]).strip(),
        "train_seconds": training["train_s"],
        "steps": training["step"],
        "train_rows": training["num_rows"],
        "train_audio_s": training["audio_s"],
        "rejected_train": training["rejects"],
        "http_transcript": transcript,
        "http_reference": reference,
    }


def quickstart(config: TrainConfig, show_progress) -> dict:
    """Runs every step whose result is not there yet; returns the content of summary.json, beside which report.html lies.

    Args:
        show_progress: wraps the iterable of data files as they are made.

    Raises:
        ConfigError: `runs_dir` is a URL, or another Ray runs on this machine.
    """
    started = time.perf_counter()
    config = with_absolute_paths(config)
    require(is_local(config.run_dir), f"runs_dir={config.runs_dir}: the quickstart wants a folder")
    data = SyntheticConfig()
    tests = f"{absolute(data.output_dir)}/test/*.parquet"
    with local_cluster() as cluster:
        manifest = make_dataset(data, show_progress)
        print(f"data: {manifest['num_rows']} rows, {manifest['hours']:.2f} h of speech in {data.output_dir}", flush=True)
        train_job(cluster, config)
        evaluation = evaluate_job(cluster, config, tests)
        worst = worst_utterances(config.run_dir)
        rows = _rows_by_id(tests, {SERVED_ROW, *(line["id"] for line in worst)})
        clip = as_wav(rows[SERVED_ROW])
        (config.run_dir / "clip.wav").write_bytes(clip)  # for users to send by themselves
        with serve_app(cluster, config.run_dir, {"model": str(config.run_dir / "model")}) as url:
            transcript = ask_server(url, clip)
    summary = summarize(config, evaluation, transcript, rows[SERVED_ROW]["text"])
    summary["total_seconds"] = time.perf_counter() - started
    (config.run_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_report(config.run_dir, {name: as_wav(row) for name, row in rows.items()})
    return summary


def run_seeds(config: TrainConfig, show_progress) -> list[dict]:
    """Trains and evaluates with each of the seeds 0 to 4; returns their headline figures.

    Args:
        show_progress: wraps the iterable of data files as they are made.
    """
    require(is_local(config.run_dir), f"runs_dir={config.runs_dir}: the seeds' runs want a folder")
    data, results = SyntheticConfig(), []
    tests = f"{absolute(data.output_dir)}/test/*.parquet"
    with local_cluster() as cluster:
        make_dataset(data, show_progress)
        for seed in range(NUM_SEEDS):
            run = replace(with_absolute_paths(config), seed=seed, name=f"{config.name}-seed-{seed}")
            train_job(cluster, run)
            results.append({"seed": seed, **summarize(run, evaluate_job(cluster, run, tests), "", "")})
    return results
