"""Estimates what a training will take, from measurements: rows, steps, hours, dollars, decode nodes, storage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq

from tiny_audio.cluster.config import EstimateConfig
from tiny_audio.config import TrainConfig, require
from tiny_audio.data.footers import read_mix
from tiny_audio.data.plan import RowGroup

MEAN_CLIP_S = 8.7  # of LoquaciousSet, and of the clips that the figures were measured with
CHECKPOINT_MB = 141.0
WEIGHTS_GB = 8.0  # of the two real backbones
GIB_PER_CACHED_HOUR = 1 / 2.3  # of encoder frames
MEASURED_DEV_ROWS = 256  # of a validation in `seed_job`


@dataclass(frozen=True)
class Line:
    """Holds one quantity of an estimate, as text for people, and where it comes from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Shards:
    """Holds what the footers of the training data say: the rows of an epoch, and the bytes and seconds of a row."""

    rows_per_epoch: float
    bytes_per_row: float
    mean_clip_s: float


def measure_shards(config: TrainConfig, say: Callable[[str], None]) -> Shards:
    """Reads the footers of all training shards, and the durations of one row group.

    Raises:
        ConfigError: as `read_mix` does, or if the shards hold no rows.
    """
    say(f"reading the footers of {', '.join(config.data.train_weights)}")
    groups = read_mix(config.data.train_weights, config.data.max_train_rows)
    require(bool(groups), f"{config.data.train}: the training shards hold no rows")
    bytes_per_row, mean_clip_s = _sample(groups[0])
    return Shards(sum(group.num_rows * group.weight for group in groups), bytes_per_row, mean_clip_s)


def _sample(group: RowGroup) -> tuple[float, float]:
    """Returns the mean stored bytes and seconds of a row of this group."""
    with fsspec.open(group.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        footer = parquet.metadata.row_group(group.index)
        size = sum(footer.column(i).total_compressed_size for i in range(footer.num_columns)) / footer.num_rows
        if "duration" not in parquet.schema_arrow.names:
            return size, MEAN_CLIP_S
        return size, float(np.mean(parquet.read_row_group(group.index, ["duration"])["duration"].to_numpy()))


def _row(rows: list[dict[str, Any]], **wanted) -> dict[str, Any]:
    return next(row for row in rows if all(row.get(key) == value for key, value in wanted.items()))


def rows_per_s_per_gpu(config: TrainConfig, mean_clip_s: float, figures: dict[str, Any]) -> tuple[float, str]:
    """Returns the rows that one GPU alone trains in a second, and the figure that says so.

    With the exact encoder, which pads all clips to 30 s, a row counts; without it, a second of audio does.

    Raises:
        ConfigError: nothing like this config was measured.
    """
    require(config.use_gpu, "no figure says how fast CPUs train: estimate with use_gpu=true")
    bf16 = config.model.dtype == "bfloat16"
    require(bf16, "no figure says how fast a GPU trains in float32: estimate with model.dtype=bfloat16")
    encoder = "exact encoder" if config.model.encoder_window == "full" else "25 tokens/s"
    name = f"{'fp8' if config.fp8 else 'bf16'}, {encoder}"
    figure, source = _row(figures["step"], name=name), f'step, "{name}"'
    speed = figure["samples_per_s"] if config.model.encoder_window == "full" else figure["audio_s_per_s"] / mean_clip_s
    if config.zero_stage == 3:
        stages = [_row(figures["zero3_2_gpus"], zero_stage=stage)["audio_s_per_s"] for stage in (2, 3)]
        return speed * stages[1] / stages[0], source + " x zero3_2_gpus, ZeRO 3 by ZeRO 2"
    return speed, source


def _cached_speed(config: TrainConfig, shards: Shards, figures: dict[str, Any], speed: float) -> tuple[float, str]:
    """Returns the speed over all epochs if encoder frames are kept from the first one on, or `speed` if they don't fit."""
    epochs = config.num_steps * config.data.batch_rows / shards.rows_per_epoch
    hours = shards.rows_per_epoch * shards.mean_clip_s / 3600 / config.num_workers
    if epochs <= 1 or config.cache_features_gib < hours * GIB_PER_CACHED_HOUR or config.model.encoder_window != "full":
        return speed, ""
    name = f"{'fp8' if config.fp8 else 'bf16'}, exact encoder, frames kept"
    kept = _row(figures["step"], name=name)["samples_per_s"]
    return epochs / (1 / speed + (epochs - 1) / kept), f', from the second epoch "{name}"'


def parallel_share(num_gpus: int, figures: dict[str, Any]) -> tuple[float, str]:
    """Returns the share of its speed that a GPU keeps among others, by the largest number measured up to `num_gpus`."""
    rows = [row for row in figures["scale_4_gpus"] if row["zero_stage"] == 2 and row["num_gpus"] <= num_gpus]
    alone, most = _row(rows, num_gpus=1)["samples_per_s"], max(rows, key=lambda row: row["num_gpus"])
    beyond = f", and {num_gpus} were not tried" if num_gpus > most["num_gpus"] else ""
    return most["samples_per_s"] / most["num_gpus"] / alone, f"scale_4_gpus, {most['num_gpus']} GPUs{beyond}"


def _seconds_beside_steps(config: TrainConfig, figures: dict[str, Any]) -> float:
    """Adds up the seconds of the start, the validations (without their WER, which was not measured), checkpoints and export."""
    job, start = figures["seed_job"][0], figures["startup"][0]
    validation_s = (job["training_s"] - job["in_steps_s"]) / job["num_evaluations"]
    validation_s *= max(1.0, config.data.max_dev_rows / MEASURED_DEV_ROWS / config.num_workers)
    save_s = sum(job["save_stall_s"]) / len(job["save_stall_s"])
    return (
        start["first_step_after_s"]
        + start["last_step_to_end_of_job_s"]
        + config.num_steps / config.eval_every * validation_s
        + config.num_steps / config.checkpoint_every * save_s
    )


def estimate(config: EstimateConfig, shards: Shards, figures: dict[str, Any]) -> list[Line]:
    """Estimates a whole run.

    Args:
        figures: as ray_jobs/benchmarks/h200.json has them.

    Raises:
        ConfigError: nothing like this config was measured.
    """
    num_rows, num_gpus = config.num_steps * config.data.batch_rows, config.num_workers
    alone, source = rows_per_s_per_gpu(config, shards.mean_clip_s, figures)
    alone, kept = _cached_speed(config, shards, figures, alone)
    share, share_source = parallel_share(num_gpus, figures)
    speed = alone * share * num_gpus
    seconds = num_rows / speed + _seconds_beside_steps(config, figures)
    gpu_hours = seconds / 3600 * num_gpus
    per_core = min(job["decode_rows_per_s_and_core"] for job in figures["seed_job"] if "decode_rows_per_s_and_core" in job)
    cores = speed / per_core
    lines = [
        Line("rows", f"{num_rows:,} of {shards.rows_per_epoch:,.0f} an epoch", "num_steps x data.batch_rows; the footers"),
        Line("epochs", f"{num_rows / shards.rows_per_epoch:.2f}", ""),
        Line("audio", f"{num_rows * shards.mean_clip_s / 3600:,.0f} h, {shards.mean_clip_s:.1f} s a row", "the first row group"),
        Line("speed", f"{speed:,.0f} rows/s: {num_gpus} x {alone:.0f} x {share:.2f}", f"{source}{kept}; {share_source}"),
        Line("step", f"{1000 * config.data.batch_rows / speed:.0f} ms", ""),
        Line("time", f"{seconds / 3600:.2f} h", "steps; startup and validations as seed_job has them, without their WER"),
        Line("GPU hours", f"{gpu_hours:.1f}", ""),
        Line("decode cores", f"{cores:.1f}, {_decode_nodes(config, cores)}", f"seed_job, {per_core:.0f} rows/s a core"),
        Line("reads", f"{speed * shards.bytes_per_row / 1e6:,.0f} MB/s", f"{shards.bytes_per_row / 1e6:.2f} MB a row"),
        Line("storage", f"{_storage_gb(config):.1f} GB", "checkpoints of 141 MB, weights of 8 GB"),
    ]
    if config.usd_per_gpu_hour is not None:
        lines.append(Line("dollars", f"{gpu_hours * config.usd_per_gpu_hour:,.0f}", "usd_per_gpu_hour; GPUs alone"))
    return lines


def _decode_nodes(config: EstimateConfig, cores: float) -> str:
    nodes = math.ceil(cores / config.cores_per_decode_node)
    return f"{nodes} node{'s' * (nodes > 1)} of {config.cores_per_decode_node}"


def _storage_gb(config: TrainConfig) -> float:
    return WEIGHTS_GB + (config.keep_checkpoints + 2) * CHECKPOINT_MB / 1000  # the last one, and one being written


def cautions(config: TrainConfig, figures: dict[str, Any]) -> list[str]:
    """Says what makes the estimate too good, as far as the config tells."""
    said = [f"measured on {figures['machine'].partition(',')[0]}; other GPUs differ"]
    rows_per_worker = config.data.batch_rows / config.num_workers
    least = min(row["rows_per_step"] for row in figures["step"] if "rows_per_step" in row)
    if rows_per_worker < least:
        said.append(f"{rows_per_worker:g} rows a GPU and step are fewer than any measured ({least}): it will be slower")
    if not config.compile:
        said.append("compile=false was not counted: a quarter slower on two GPUs (scale_2_gpus_earlier)")
    if config.model.audio_model_id.startswith("tiny_audio/"):
        said.append("the figures are of the real backbones; these are far smaller")
    return said
