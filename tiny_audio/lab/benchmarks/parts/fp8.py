"""The quickstart's training on a GPU, its backbones in bfloat16 and in FP8: whether both learn alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.inputs import count_gpus
from tiny_audio.lab.benchmarks.runs import CONFIGS, clear_runs, timed_job
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.ray_cli import Cluster, submit_job
from tiny_audio.run.metrics import read_metrics


def measure(config: BenchmarkConfig) -> Iterator[dict]:
    """Trains in both formats by jobs; yields their loss curves and validations."""
    count_gpus(config)
    runs_dir = clear_runs(config)
    with local_cluster() as cluster:
        submit_job(cluster, "python", "-m", "ray_jobs.synthesize", str(CONFIGS / "synthetic.yaml"), f"output_dir={runs_dir}/data")
        for name, fp8 in (("bf16", False), ("fp8", True)):
            yield _learning(cluster, runs_dir, name, fp8)


def _learning(cluster: Cluster, runs_dir: Path, name: str, fp8: bool) -> dict:
    data = [f"data.{split}={runs_dir}/data/{split}/*.parquet" for split in ("train", "dev")]
    overrides = [f"name={name}", f"fp8={fp8}", "use_gpu=true", "num_workers=1", "model.dtype=bfloat16", *data]
    run, _, _ = timed_job(cluster, "quickstart.yaml", runs_dir, overrides)
    lines = read_metrics(run.run_dir)
    losses = {line["step"]: round(line["loss"], 4) for line in lines if "loss" in line and line["step"] % 40 == 0}
    scores = [{key: line[key] for key in ("step", "val_loss", "val_wer")} for line in lines if "val_loss" in line]
    return {"name": name, "losses": losses, "validation": scores}
