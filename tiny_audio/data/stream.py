"""The Ray Data graph, and the only file that builds one: shards -> decode -> batches, on CPU nodes, streamed to workers.

A row of the training stream is one worker's share of one step, ready-made, in a block of its own: Ray Train's split
hands the blocks out in turn, so worker r of n gets rows r, r + n, ... `WorkerStream` checks that it is so.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionOptions, TaskPoolStrategy
from ray.train import DataConfig as IngestConfig

from tiny_audio.audio.augment import augment_clip
from tiny_audio.audio.clip import Clip
from tiny_audio.config import AugmentConfig
from tiny_audio.data.batch import WorkerBatch, window_batches
from tiny_audio.data.clip_table import clip_table
from tiny_audio.data.labels import Truecaser
from tiny_audio.data.plan import RowSlice, Window
from tiny_audio.data.rows import Reject
from tiny_audio.data.shards import decode_slices, row_copies
from tiny_audio.ray_names import SUBCLUSTER

PREFETCH_STEPS = 2  # that Ray Data fetches ahead: a worker gets a step once these are there too, or the data have ended
STEPS_A_PLAN = 256  # of a planning task: at 10 million rows it takes under a second, and decodes for minutes
END = -1  # step of the rows after the last one; see train_dataset


def quiet_ray_data() -> None:
    """Leaves progress to the jobs, which show their own; Ray Data's errors still show."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclass(frozen=True)
class StreamSettings:
    """What a decode task needs to know."""

    seed: int
    start_step: int
    num_steps: int
    max_duration_s: float
    silence_share: float
    truecaser: Truecaser | None = None
    source_weights: dict[str, float] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def _to_table(batch: WorkerBatch) -> pa.Table:
    """One row. All PCM of the share lies in one binary: a ragged column would be slow to move."""
    row = dataclasses.asdict(dataclasses.replace(batch, clips=[], rejects=[]))
    row["clips"] = [{"id": c.id, "text": c.text, "num_samples": len(c.pcm)} for c in batch.clips]
    row["rejects"] = [dataclasses.asdict(reject) for reject in batch.rejects]
    pcm = np.concatenate([clip.pcm for clip in batch.clips]) if batch.clips else np.zeros(0, np.int16)
    return pa.table({"step": [batch.step], "header": [json.dumps(row)], "pcm": pa.array([pcm.tobytes()], pa.large_binary())})


def _from_table(table: pa.Table) -> WorkerBatch:
    """What `_to_table` made a row of. The clips are views of the object store: a copy would hold Python up meanwhile."""
    header = json.loads(table["header"][0].as_py())
    pcm = np.frombuffer(table["pcm"][0].as_buffer(), np.int16)
    ends = np.cumsum([clip["num_samples"] for clip in header["clips"]], dtype=int)
    clips = [
        Clip(clip["id"], pcm[end - clip["num_samples"] : end], clip["text"])
        for clip, end in zip(header["clips"], ends, strict=True)
    ]
    rejects = [Reject(**reject) for reject in header["rejects"]]
    return WorkerBatch(**{**header, "clips": clips, "rejects": rejects})


def _to_window(row: dict) -> Window:
    plan = json.loads(row["window"])
    return Window(**{**plan, "slices": tuple(RowSlice(**part) for part in plan["slices"])})


def _decode_window(table: pa.Table, settings: StreamSettings, num_workers: int) -> Iterator[pa.Table]:
    """The task on a CPU node: one planned window in, a one-row table per step and worker out."""
    for row in table.to_pylist():
        if row["window"] == "":
            for rank in range(num_workers):
                yield _to_table(WorkerBatch(END, END, rank, 0, 0.0, []))
            continue
        window = _to_window(row)
        copies = partial(row_copies, weights=settings.source_weights, seed=settings.seed, epoch=window.epoch)
        rows = decode_slices(window.slices, settings.max_duration_s, settings.truecaser, copies)
        how = (settings.augment, settings.max_duration_s, settings.seed, window.epoch)
        rows = [augment_clip(row, *how) if isinstance(row, Clip) else row for row in rows]  # before dealing: durations change
        dealt = {"seed": settings.seed, "num_workers": num_workers, "silence_share": settings.silence_share}
        for batch in window_batches(window, rows, **dealt):
            if settings.start_step <= batch.step < settings.num_steps:
                yield _to_table(batch)


def _plan_steps(table: pa.Table, plan: Callable[..., Iterator[Window]], settings: StreamSettings) -> Iterator[pa.Table]:
    """The task that plans: a stretch of steps in, a one-row table per window that begins in it out.

    The window that holds the first step of all may have begun earlier.
    """
    for row in table.to_pylist():
        start, stop = row["start_step"], row["stop_step"]
        if start == settings.num_steps:
            yield from [pa.table({"window": [""]})] * 2
            continue
        for window in plan(num_steps=stop, start_step=start):
            if window.first_step >= start or start == settings.start_step:
                yield pa.table({"window": [json.dumps(dataclasses.asdict(window))]})


def window_dataset(plan: Callable[..., Iterator[Window]], settings: StreamSettings) -> ray.data.Dataset:
    """The planned windows, a row each, in order, and two empty ones after them. They are planned as they are asked for.

    To list and store the windows of a whole run would take the driver seconds for each epoch of LoquaciousSet large, at
    every start. So a task plans a stretch of steps at a time. It holds no CPU: it waits for those that decode its windows,
    who may then find none. Nor may Ray make one task of both: a decode task has one window, for they are to run abreast.

    Args:
        plan: `plan_windows` with all but `num_steps` and `start_step` given.
    """
    starts = [*range(settings.start_step, settings.num_steps, STEPS_A_PLAN), settings.num_steps]
    stretches = [{"start_step": start, "stop_step": min(start + STEPS_A_PLAN, settings.num_steps)} for start in starts]
    dataset = ray.data.from_items(stretches, override_num_blocks=len(stretches)).map_batches(
        _plan_steps,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"plan": plan, "settings": settings},
        num_cpus=0,
        compute=TaskPoolStrategy(size=1),
    )
    dataset.context.target_max_block_size = 1  # byte: a row is a block, as soon as it is made
    return dataset


def train_dataset(plan: Callable[..., Iterator[Window]], settings: StreamSettings, num_workers: int) -> ray.data.Dataset:
    """The stream of training batches, in the order of the steps. Lazy: nothing is planned or read before a worker asks.

    At a stream's end Ray's equal split deals out what is left in runs, not in turns; so rows that nobody reads follow.

    Args:
        plan: as `window_dataset` takes it.
    """
    dataset = window_dataset(plan, settings).map_batches(
        _decode_window, batch_size=1, batch_format="pyarrow", fn_kwargs={"settings": settings, "num_workers": num_workers}
    )
    dataset.context.target_max_block_size = 1  # as above
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = -1  # a long validation is no stall
    return dataset


class _Ingest(IngestConfig):
    """Train's split of a stream that is made at every start of the workers, when it is known how many they are."""

    def configure(self, datasets: dict[str, Callable[[int], ray.data.Dataset]], world_size: int, *args, **kwargs):
        made = {name: make(world_size) for name, make in datasets.items()}
        return super().configure(made, world_size, *args, **kwargs)


def ingest_config(decode_label: str | None) -> IngestConfig:
    """Train's split: in order, and decoded only on nodes labelled `ray-subcluster=decode_label`, where that is given.

    What it splits is a function: the number of workers -> their dataset.
    """
    options = ExecutionOptions(preserve_order=True)
    if decode_label:
        options.label_selector = {SUBCLUSTER: decode_label}
    return _Ingest(execution_options={"train": options}, enable_shard_locality=False)


class WorkerStream:
    """A worker's batches in the order of the steps, from its share of the dataset.

    Decoding begins with it, before anyone asks: Ray Data takes ten seconds to start, in which a model can be loaded.
    """

    def __init__(self, shard: ray.data.DataIterator, rank: int):
        self.rank, self.next_step = rank, 0
        self.rows = iter(shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCH_STEPS))
        self.first = ThreadPoolExecutor(1, "stream").submit(next, self.rows)

    def begin_at(self, step: int) -> WorkerStream:
        """Says of which step the first batch must be; 0 unless told."""
        self.next_step = step
        return self

    def __next__(self) -> WorkerBatch:
        """The batch of the next step.

        Raises:
            RuntimeError: the stream is out of step, or has ended: a defect, never to be trained through.
        """
        try:
            first, self.first = self.first, None
            batch = _from_table(first.result() if first else next(self.rows))
        except StopIteration:
            raise RuntimeError(f"the data ended before step {self.next_step}") from None
        if (batch.step, batch.rank) != (self.next_step, self.rank):
            raise RuntimeError(f"rank {self.rank} got the batch of step {batch.step}, rank {batch.rank}; wants {self.next_step}")
        self.next_step += 1
        return batch


def _decode_slice(table: pa.Table, max_duration_s: float) -> pa.Table:
    slices = [RowSlice(**row) for row in table.to_pylist()]
    decoded = decode_slices(slices, max_duration_s)
    return clip_table(decoded)


def clip_dataset(slices: Iterable[RowSlice], max_duration_s: float) -> ray.data.Dataset:
    """Decoded clips, a row each, in order; a reject is a row with a `reason` and no PCM."""
    parts = [dataclasses.asdict(part) for part in slices]
    return ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        _decode_slice, batch_size=None, batch_format="pyarrow", fn_kwargs={"max_duration_s": max_duration_s}
    )


def map_each(items: list[dict], function: Callable[[dict], dict]) -> Iterator[dict]:
    """Runs `function` on every item, a task each; yields what they return as it comes."""
    return ray.data.from_items(items, override_num_blocks=len(items)).map(function).iter_rows()


def memory_dataset(clips: list[Clip]) -> ray.data.Dataset:
    """Clips at hand, as `clip_dataset` has those of shards."""
    return ray.data.from_arrow(clip_table(clips))
