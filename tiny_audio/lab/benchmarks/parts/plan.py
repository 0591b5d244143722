"""Planning and resuming at the size of LoquaciousSet large: how long they take, and how much memory. It needs no GPU.

The planned files do not exist: the plan is made of their footers' row counts alone. Real footers are read in a measurement
of their own, from small local files; over a network, the network sets the time.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path
from string import ascii_lowercase

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

import tiny_audio.training.driver  # noqa: F401  memory is measured on top of all that a driver imports
from tiny_audio.config import TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.plan import RowGroup, steps_per_epoch
from tiny_audio.data.stream import window_dataset
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.local_ray import local_cluster
from tiny_audio.lab.process_memory import peak_rss_mib, rss_mib
from tiny_audio.model.decoder import require_decoder
from tiny_audio.model.encoder import require_encoder
from tiny_audio.run.checkpoint import Progress, checkpoint_folder, require_same_plan, save_checkpoint, state_bytes
from tiny_audio.run.plan_file import keep_plan, kept_plan
from tiny_audio.training.zero import MOMENTS

CONFIG = Path("ray_jobs/configs/loquacious_large.yaml")
LEFT_STEPS = 8  # of the epoch, where the run resumes
WIDTHS = (1280, 2048)  # of whisper-large-v3-turbo and SmolLM3-3B
NUM_TOKENS, NUM_MERGES = 128_000, 280_000  # about those of SmolLM3-3B's tokenizer


@dataclass(frozen=True)
class PlanSize:
    """The size of the planned data; by default, about that of LoquaciousSet large."""

    num_files: int = 1000
    groups_per_file: int = 100
    rows_per_group: int = 100
    num_footers: int = 300  # of the files whose footers are read


def measure(config: BenchmarkConfig) -> list[dict]:
    """Measures in a process of its own, which imports what a driver imports and nothing else: its memory counts."""
    with local_cluster():
        return ray.get(ray.remote(plan_figures).remote(PlanSize()))


def plan_figures(size: PlanSize) -> list[dict]:
    """Does what a driver does before a training, and measures this process's memory meanwhile. Ray must be up."""
    with tempfile.TemporaryDirectory() as name:
        folder, config = Path(name), load_config(TrainConfig, CONFIG, [f"runs_dir={name}"])
        imported_mib = rss_mib()
        write = [(write_small_decoder, folder / "decoder"), (write_shards, folder, size), (write_run, config, size)]
        ray.get([ray.remote(make).remote(*arguments) for make, *arguments in write])  # in other processes, for this one's memory
        rows = [check_figures(folder / "decoder"), footer_figures(folder, size)]
        groups, kept = kept_figures(config)
    rows += [kept, *resume_figures(config, groups)]
    rows += [{"name": "memory of the driver", "imported_mib": imported_mib, "after_mib": rss_mib(), "peak_mib": peak_rss_mib()}]
    rows += [stream_figures(config, groups, num_epochs) for num_epochs in (1, 10)]  # in a run, another process does this
    return [*rows, whole_figures(config, groups)]


def bytes_read() -> int:
    """Returns the bytes that this process has read, from disk or from the system's cache of it."""
    return psutil.Process().io_counters().read_chars


def absent_groups(size: PlanSize) -> list[RowGroup]:
    """Returns row groups as footers would give them, of files that do not exist."""
    paths = [f"/absent/large/train-{number:05d}-of-{size.num_files:05d}.parquet" for number in range(size.num_files)]
    return [RowGroup(path, i, size.rows_per_group) for path in paths for i in range(size.groups_per_file)]


def write_shards(folder: Path, size: PlanSize) -> None:
    """Writes small files with as many row groups as large ones have."""
    wav = {"bytes": b"RIFF", "path": "a.wav"}
    table = pa.Table.from_pylist([{"ID": f"row-{i}", "wav": wav, "text": "a"} for i in range(size.groups_per_file)])
    for number in range(size.num_footers):
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=1)


def check_figures(decoder: Path) -> dict:
    """Checks the backbones as a driver does at a start."""
    started = time.perf_counter()
    require_encoder("tiny_audio/backbones/encoder")
    require_decoder(str(decoder))
    return {"name": "backbones checked", "seconds": time.perf_counter() - started, "memory_mib": rss_mib()}


def footer_figures(folder: Path, size: PlanSize) -> dict:
    """Reads the footers of all files in `folder`."""
    started, before = time.perf_counter(), bytes_read()
    groups = read_footers(list_shards(f"{folder}/*.parquet"))
    seconds, num_bytes = time.perf_counter() - started, bytes_read() - before
    figures = {"name": "footers read", "num_files": size.num_footers, "num_row_groups": len(groups), "seconds": seconds}
    per_file = {"s_per_1000_files": 1000 * seconds / size.num_footers, "bytes_per_file": num_bytes / size.num_footers}
    return figures | per_file


def write_small_decoder(folder: Path) -> None:
    """Writes a small checkpoint, but with a tokenizer of as many tokens and merges as SmolLM3's."""
    from tiny_audio.lab.random_backbones import SMOLLM3_3B, write_decoder

    small = {"hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    write_decoder(folder, SMOLLM3_3B | small)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    ids = count(1 + max(*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"])))
    words = ("".join(letters) for length in (2, 3, 4) for letters in product(ascii_lowercase[:20], repeat=length))
    for word in islice((word for word in words if word not in vocab), NUM_TOKENS - len(vocab)):
        vocab[word] = next(ids)
        merges += [[word[:cut], word[cut:]] for cut in range(1, len(word))]
    del merges[NUM_MERGES:]
    path.write_text(json.dumps(tokenizer))


def write_run(config: TrainConfig, size: PlanSize) -> None:
    """Writes what a run that was stopped leaves for its next start: the plan, and a checkpoint of the full size."""
    from tiny_audio.model.projectors import MLPProjector

    groups = absent_groups(size)
    keep_plan(config.run_dir, config.data, groups)
    weights = {name: weight.detach() for name, weight in MLPProjector(*WIDTHS).named_parameters()}
    moments = {f"{moment}.{name}": torch.zeros_like(weight) for moment in MOMENTS for name, weight in weights.items()}
    state = state_bytes(Progress(step=LEFT_STEPS, plan=_plan(config, groups).identity()))
    save_checkpoint(checkpoint_folder(config.run_dir, LEFT_STEPS), weights, moments, state)


def kept_figures(config: TrainConfig) -> tuple[list[RowGroup], dict]:
    """Reads the plan and the last checkpoint as a driver does before a run goes on; returns the row groups too."""
    started, before = time.perf_counter(), bytes_read()
    groups = kept_plan(config.run_dir, config.data)
    planned, after_plan = time.perf_counter(), bytes_read()
    require_same_plan(config.run_dir, _plan(config, groups).identity())
    seconds = {"plan_s": planned - started, "checkpoint_s": time.perf_counter() - planned}
    num_bytes = {"plan_bytes": after_plan - before, "checkpoint_bytes": bytes_read() - after_plan}
    return groups, {"name": "the run's folder read", "num_row_groups": len(groups), **seconds, **num_bytes}


def resume_figures(config: TrainConfig, groups: list[RowGroup]) -> list[dict]:
    """Plans the first window of a run that resumes near the end of an epoch, and sizes its position in a checkpoint."""
    data = config.data
    per_epoch = steps_per_epoch(groups, data.batch_rows)
    start_step = per_epoch - LEFT_STEPS
    started = time.perf_counter()
    first = next(_plan(config, groups).windows(num_steps=per_epoch, start_step=start_step))
    resumed = {
        "name": "resumed near the end of an epoch",
        "num_rows": sum(group.num_rows for group in groups),
        "num_row_groups": len(groups),
        "num_files": len({group.path for group in groups}),
        "step": start_step,
        "num_steps": per_epoch,
        "window_first_step": first.first_step,
        "window_rows": first.num_rows,
        "first_window_s": time.perf_counter() - started,
    }
    state = state_bytes(Progress(step=start_step, num_rows=start_step * data.batch_rows, plan=_plan(config, groups).identity()))
    kept = {"name": "position in a checkpoint", "step": json.loads(state)["step"], "state_json_bytes": len(state)}
    return [resumed, kept]


def _plan(config: TrainConfig, groups: list[RowGroup]) -> TrainingPlan:
    return TrainingPlan.of(config, groups, None)


def stream_figures(config: TrainConfig, groups: list[RowGroup], num_epochs: int) -> dict:
    """Plans the same window through Ray Data: makes the dataset of `num_epochs`, and waits for its first row."""
    per_epoch = steps_per_epoch(groups, config.data.batch_rows)
    start_step, num_steps = per_epoch - LEFT_STEPS, num_epochs * per_epoch
    started = time.perf_counter()
    windows = window_dataset(_plan(config, groups), range(start_step, num_steps))
    dataset_made = time.perf_counter()
    row = next(iter(windows.iter_rows()))
    window = json.loads(row["window"])
    figures = {"name": f"through Ray Data, epochs: {num_epochs}", "num_steps": num_steps, "first_step": window["first_step"]}
    return {**figures, "dataset_s": dataset_made - started, "first_window_s": time.perf_counter() - started}


def whole_figures(config: TrainConfig, groups: list[RowGroup]) -> dict:
    """Plans all windows of an epoch, which no start does, and checks that the first one of a resumed run is among them."""
    per_epoch = steps_per_epoch(groups, config.data.batch_rows)
    first = next(_plan(config, groups).windows(num_steps=per_epoch, start_step=per_epoch - LEFT_STEPS))
    started = time.perf_counter()
    windows = list(_plan(config, groups).windows(num_steps=per_epoch))
    figures = {"name": "all windows of the epoch", "num_windows": len(windows), "seconds": time.perf_counter() - started}
    return {**figures, "same_as_from_the_start": first in windows}
