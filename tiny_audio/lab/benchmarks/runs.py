"""Whole runs through Ray, timed: the seed's job from submit to checkpoint; more GPUs and other ZeRO stages; FP8's learning.

Backbones have the true shapes and random weights, clips are noise of LoquaciousSet's durations: for speed that is
enough. Runs go to a cluster of this process's own, and are read off their metrics.jsonl.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.config import TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.data.batch import window_batches
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.plan import Window, plan_pass
from tiny_audio.data.shards import decode_slices
from tiny_audio.lab.benchmarks.step import LONGEST_S, benchmark_clips
from tiny_audio.lab.local_ray import Cluster, submit_job
from tiny_audio.lab.random_backbones import write_random_backbones
from tiny_audio.run.metrics import read_metrics
from tiny_audio.training.driver import train

ROWS_PER_FILE, ROWS_PER_ROW_GROUP = 512, 64
DEV_ROWS = 512
SCALE_STEPS, SCALE_WARMUP = 24, 4
ROWS_PER_GPU = 128  # in a step of the scale runs
CONFIGS = Path("ray_jobs/configs")


@dataclass(frozen=True)
class Inputs:
    """What the runs read."""

    train: str
    dev: str
    encoder: str
    decoder: str

    def overrides(self) -> list[str]:
        paths = {"data.train": self.train, "data.dev": self.dev}
        paths |= {"model.audio_model_id": self.encoder, "model.text_model_id": self.decoder}
        return [f"{key}={value}" for key, value in paths.items()]


def write_noise_shards(folder: Path, num_rows: int, seed: int, longest_s: float = LONGEST_S) -> str:
    """Benchmark clips as WAV in Parquet, as LoquaciousSet has them; returns the glob of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        rows = []
        for clip in benchmark_clips(min(ROWS_PER_FILE, num_rows - start), seed + number, longest_s):
            buffer = io.BytesIO()
            soundfile.write(buffer, clip.pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
            wav = {"bytes": buffer.getvalue(), "path": clip.id}
            rows.append({"ID": clip.id, "duration": clip.duration_s, "wav": wav, "text": clip.text})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"noise-{number:03d}.parquet", row_group_size=ROWS_PER_ROW_GROUP)
    return str(folder / "*.parquet")


def make_inputs(folder: Path, num_rows: int) -> Inputs:
    """Random backbones of the true shapes, about 8 GB, unless they are there, and noise shards of 0.3 MB a row."""
    encoder, decoder = folder / "backbones/encoder", folder / "backbones/decoder"
    if not (decoder / "config.json").is_file():
        write_random_backbones(folder / "backbones", device="cuda")
    train = write_noise_shards(folder / f"train-{num_rows}", num_rows, seed=0)
    return Inputs(train, write_noise_shards(folder / "dev", DEV_ROWS, seed=1000), str(encoder), str(decoder))


def timed_run(cluster: Cluster, config: str, runs_dir: Path, overrides: list[str]) -> tuple[TrainConfig, float, float]:
    """Submits a training; returns its config, and when it was submitted and done."""
    overrides = [*overrides, f"runs_dir={runs_dir}", "max_failures=0"]
    submitted = time.time()
    submit_job(cluster, "python", "-m", "ray_jobs.train", str(CONFIGS / config), *overrides)
    return load_config(TrainConfig, CONFIGS / config, overrides), submitted, time.time()


def decode_rate(inputs: Inputs) -> float:
    """Rows a second that one CPU core decodes and lays out for the workers: what the decode nodes are to be sized by."""
    slices = list(plan_pass(read_footers(list_shards(inputs.dev))))
    started = time.perf_counter()
    rows = decode_slices(slices, 30.0)
    window_batches(Window(0, 0, 0, max(1, len(rows) // 32), tuple(slices)), rows, seed=0, num_workers=1)
    return len(rows) / (time.perf_counter() - started)


def seed_job(cluster: Cluster, inputs: Inputs, runs_dir: Path) -> list[dict]:
    """The seed's job as its config has it: how long from submit to the model, and how much of that is start-up."""
    overrides = [*inputs.overrides(), "name=seed"]
    config, submitted, done = timed_run(cluster, "seed.yaml", runs_dir, overrides)
    lines = read_metrics(config.run_dir)
    steps = [line for line in lines if "loss" in line]
    began = steps[0]["unix_time"] - steps[0]["time_s"]
    rates = [line["samples_per_s"] for line in steps[1:]]
    row = {
        "name": "seed.yaml",
        "startup_s": began - submitted,
        "training_s": done - began,
        "in_steps_s": steps[-1]["time_s"],
        "total_s": done - submitted,
        "samples_per_s": sum(rates) / len(rates),
        "data_wait_share": sum(line["data_wait_share"] for line in steps[1:]) / len(rates),
        "peak_gib": steps[-1]["peak_gib"],
        "num_evaluations": sum("val_loss" in line for line in lines) - 1,
        "decode_rows_per_s_and_core": decode_rate(inputs),
    }
    return [row]


def scale(inputs: Inputs, runs_dir: Path, num_gpus: int) -> list[dict]:
    """The same work per GPU on one GPU and on more, at every ZeRO stage; and the same global batch on one.

    Stage 3 runs its layers as they are. So a run at stage 2 without compiled layers stands beside it, to compare losses with.
    """
    all_rows = num_gpus * ROWS_PER_GPU
    runs = [(count, 2, count * ROWS_PER_GPU, True) for count in (1, 2, 4, 8) if count <= num_gpus]
    runs += [(num_gpus, stage, all_rows, False) for stage in (3, 2)]
    runs += [(num_gpus, stage, all_rows, True) for stage in (0, 1)] + [(1, 2, all_rows, True)]
    return [_scale_run(inputs, runs_dir, *run) for run in dict.fromkeys(runs)]


def true_shapes_config(inputs: Inputs, runs_dir: Path, num_workers: int, changes: dict[str, object]) -> TrainConfig:
    """A training at 25 tokens/s with a short validation, and with `changes`."""
    overrides = {
        "runs_dir": runs_dir,
        "num_workers": num_workers,
        "data.max_dev_rows": 8 * num_workers,
        "data.max_wer_rows": 0,
        "model.encoder_window": "trimmed",
        "optimizer.warmup_steps": 2,
        **changes,
    }
    lines = [f"{key}={value}" for key, value in overrides.items()]
    return load_config(TrainConfig, CONFIGS / "loquacious_small.yaml", [*inputs.overrides(), *lines])


def _scale_run(inputs: Inputs, runs_dir: Path, num_workers: int, stage: int, batch_rows: int, compiled: bool) -> dict:
    name = f"scale-{num_workers}-zero{stage}-{batch_rows}{'' if compiled else '-eager'}"
    changes = {"name": name, "zero_stage": stage, "compile": compiled, "data.batch_rows": batch_rows}
    lasting = {"max_failures": 0, "num_steps": SCALE_STEPS, "log_every": 4}
    config = true_shapes_config(inputs, runs_dir, num_workers, changes | lasting)
    train(config)
    steps = [line for line in read_metrics(config.run_dir) if "loss" in line]
    steady = [line for line in steps if line["step"] > SCALE_WARMUP]

    def mean(key: str) -> float:
        return sum(line[key] for line in steady) / len(steady)

    return {
        "name": name,
        "num_gpus": num_workers,
        "zero_stage": stage,
        "compiled": compiled,
        "batch_rows": batch_rows,
        "samples_per_s": mean("samples_per_s"),
        "audio_s_per_s": mean("audio_s_per_s"),  # to compare by: a step's clips are not all alike
        "data_wait_share": mean("data_wait_share"),
        "peak_gib": steps[-1]["peak_gib"],
        "losses": [line["loss"] for line in steps],
    }


def fp8_learning(cluster: Cluster, runs_dir: Path) -> list[dict]:
    """The quickstart's training on a GPU, its backbones in bfloat16 and in FP8: both loss curves."""
    submit_job(cluster, "python", "-m", "ray_jobs.prepare", str(CONFIGS / "synthetic.yaml"), f"output_dir={runs_dir}/data")
    found = []
    for name, fp8 in (("bf16", False), ("fp8", True)):
        data = [f"data.{split}={runs_dir}/data/{split}/*.parquet" for split in ("train", "dev")]
        overrides = [f"name={name}", f"fp8={fp8}", "use_gpu=true", "num_workers=1", "model.dtype=bfloat16", *data]
        config, _, _ = timed_run(cluster, "quickstart.yaml", runs_dir, overrides)
        lines = read_metrics(config.run_dir)
        curve = {line["step"]: round(line["loss"], 4) for line in lines if "loss" in line and line["step"] % 40 == 0}
        scores = [{key: line[key] for key in ("step", "val_loss", "val_wer")} for line in lines if "val_loss" in line]
        found.append({"name": name, "losses": curve, "validation": scores})
    return found
