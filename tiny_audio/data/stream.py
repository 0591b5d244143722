"""Builds the Ray Data graph, which turns shards into batches on CPU nodes and streams them to workers.

A row of the training stream holds one worker's shares of some consecutive steps, ready-made, and is a block of its own:
Ray Train's split deals the blocks out in turn, so worker r of n gets rows r, r + n, ... `WorkerStream` checks that it does.
The split is a single Python process that passes on some 165 blocks a second, so a block holds several steps.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionOptions, TaskPoolStrategy
from ray.train import DataConfig as IngestConfig

from tiny_audio.audio.augment import augment_clip
from tiny_audio.audio.clip import Clip
from tiny_audio.data.batch import WorkerBatch, window_batches
from tiny_audio.data.clip_table import clip_structs, clip_table, read_structs
from tiny_audio.data.plan import RowSlice, Window
from tiny_audio.data.rows import Reject
from tiny_audio.data.shards import decode_slices, row_copies
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.ray_names import SUBCLUSTER

BLOCK_ROWS = 256  # rough number of clips for one worker in a block: 71 MB at LoquaciousSet's 8.7 s; a worker holds up to three
STEPS_PER_PLAN = 256  # steps of a planning task, which takes under a second at 10 million rows and feeds minutes of decoding
END = -1  # the step of the rows after the last one; see train_dataset


def quiet_ray_data() -> None:
    """Silences Ray Data's progress bars, because the jobs show their own; its errors still show."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _to_table(batches: list[WorkerBatch]) -> pa.Table:
    """Makes a one-row table of a worker's shares of some steps: a list of clips and rejects for each, the rest as JSON."""
    headers = [dataclasses.asdict(dataclasses.replace(batch, clips=[], rejects=[])) for batch in batches]
    rows = [[*batch.clips, *batch.rejects] for batch in batches]
    ends = np.cumsum([0, *map(len, rows)])
    shares = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), clip_structs(chain.from_iterable(rows)))
    clips = pa.LargeListArray.from_arrays(pa.array([0, len(batches)], pa.int64()), shares)
    return pa.table({"headers": [json.dumps(headers)], "clips": clips})


def _from_table(table: pa.Table) -> Iterator[WorkerBatch]:
    """Yields the batches that `_to_table` put into a table; the clips' samples are views of the table."""
    headers = json.loads(table["headers"][0].as_py())
    for header, share in zip(headers, table["clips"][0].values, strict=True):
        rows = read_structs(share.values)
        clips, rejects = ([row for row in rows if isinstance(row, kind)] for kind in (Clip, Reject))
        yield WorkerBatch(**header | {"clips": clips, "rejects": rejects})


def _to_window(row: dict) -> Window:
    values = json.loads(row["window"])
    return Window(**{**values, "slices": tuple(RowSlice(**part) for part in values["slices"])})


def steps_per_block(batch_rows: int, num_workers: int, block_rows: int = BLOCK_ROWS) -> int:
    """Returns how many steps make about `block_rows` clips for one worker, at least one."""
    return max(1, block_rows * num_workers // batch_rows)


def _blocks(batches: list[WorkerBatch], num_workers: int, num_steps: int) -> Iterator[list[WorkerBatch]]:
    """Yields each worker's batches of `num_steps` steps, worker by worker, then those of the steps that follow."""
    size = num_steps * num_workers
    for start in range(0, len(batches), size):
        yield from (batches[start : start + size][rank::num_workers] for rank in range(num_workers))


def _decode_window(table: pa.Table, plan: TrainingPlan, steps: range, num_workers: int, block_rows: int) -> Iterator[pa.Table]:
    """Decodes one planned window in a task on a CPU node; yields the blocks of all workers in order, as one-row tables."""
    for row in table.to_pylist():
        if row["window"] == "":
            for rank in range(num_workers):
                yield _to_table([WorkerBatch(END, END, rank, 0, 0.0, [])])
            continue
        window = _to_window(row)
        copies = partial(row_copies, weights=plan.source_weights, seed=plan.seed, epoch=window.epoch)
        rows = decode_slices(window.slices, plan.max_duration_s, plan.truecaser, copies, plan.columns)
        augment = partial(
            augment_clip, config=plan.augment, max_duration_s=plan.max_duration_s, seed=plan.seed, epoch=window.epoch
        )
        rows = [augment(row) if isinstance(row, Clip) else row for row in rows]  # before dealing: durations change
        batches = window_batches(window, rows, seed=plan.seed, num_workers=num_workers, silence_share=plan.silence_share)
        batches = [batch for batch in batches if batch.step in steps]
        num_steps = steps_per_block(plan.batch_rows, num_workers, block_rows)
        num_first = sum(batch.step == steps.start for batch in batches)  # by themselves, so that a start waits for no more
        for part in (batches[:num_first], batches[num_first:]):
            yield from map(_to_table, _blocks(part, num_workers, num_steps))


def _plan_steps(table: pa.Table, plan: TrainingPlan, steps: range) -> Iterator[pa.Table]:
    """Plans a stretch of steps in a task; yields a one-row table for each window that begins in it.

    The window that holds the first step of all may begin earlier.
    """
    for row in table.to_pylist():
        start, stop = row["start_step"], row["stop_step"]
        if start == steps.stop:
            yield from [pa.table({"window": [""]})] * 2
            continue
        for window in plan.windows(num_steps=stop, start_step=start):
            if window.first_step >= start or start == steps.start:
                yield pa.table({"window": [json.dumps(dataclasses.asdict(window))]})


def window_dataset(plan: TrainingPlan, steps: range) -> ray.data.Dataset:
    """Returns the planned windows of these steps, one per row, in order, and two empty rows; it is lazy.

    Listing and storing the windows of a whole run would take the driver seconds per epoch of LoquaciousSet large, at every
    start, so a task plans one stretch of steps at a time. That task holds no CPU, because it waits for the tasks that
    decode its windows, and they might then find none. Ray must not fuse the two either: a decode task takes a single window
    so that many run abreast.
    """
    starts = [*range(steps.start, steps.stop, STEPS_PER_PLAN), steps.stop]
    stretches = [{"start_step": start, "stop_step": min(start + STEPS_PER_PLAN, steps.stop)} for start in starts]
    dataset = ray.data.from_items(stretches, override_num_blocks=len(stretches)).map_batches(
        _plan_steps,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"plan": plan, "steps": steps},
        num_cpus=0,
        compute=TaskPoolStrategy(size=1),
    )
    dataset.context.target_max_block_size = 1  # byte: each row becomes a block as soon as it is made
    return dataset


def train_dataset(plan: TrainingPlan, steps: range, num_workers: int, block_rows: int = BLOCK_ROWS) -> ray.data.Dataset:
    """Returns the stream of training batches in the order of the steps. It is lazy: nothing is read until a worker asks.

    A block holds `steps_per_block` steps, or what is left of a window; the very first step has blocks of its own.

    At a stream's end Ray's equal split deals out what is left in runs, not in turns; so rows that nobody reads follow.
    """
    settings = {"plan": plan.without_groups(), "steps": steps, "num_workers": num_workers, "block_rows": block_rows}
    dataset = window_dataset(plan, steps).map_batches(_decode_window, batch_size=1, batch_format="pyarrow", fn_kwargs=settings)
    dataset.context.target_max_block_size = 1  # as above
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = -1  # a long validation is no stall
    return dataset


class _Ingest(IngestConfig):
    """Splits a stream that is made at every start of the workers, once their number is known."""

    def configure(self, datasets: dict[str, Callable[[int], ray.data.Dataset]], world_size: int, *args, **kwargs):
        streams = {name: make(world_size) for name, make in datasets.items()}
        return super().configure(streams, world_size, *args, **kwargs)


def ingest_config(decode_label: str | None) -> IngestConfig:
    """Returns Ray Train's split: in order, and decoded only on nodes labelled `ray-subcluster=decode_label` if given.

    It splits the dataset that a function of the number of workers returns.
    """
    options = ExecutionOptions(preserve_order=True)
    if decode_label:
        options.label_selector = {SUBCLUSTER: decode_label}
    return _Ingest(execution_options={"train": options}, enable_shard_locality=False)


class WorkerStream:
    """Yields a worker's batches in the order of the steps, from its share of the dataset.

    Decoding begins when the stream is made, before its first batch is asked for: Ray Data takes ten seconds to start, and
    the model can be loaded meanwhile. While a worker trains the steps of a block, a thread of Ray Data fetches the next one;
    no step waits for a later block.
    """

    def __init__(self, shard: ray.data.DataIterator, rank: int):
        self.rank, self.next_step = rank, 0
        # Prefetching, as Ray calls it, holds a block back until those after it have been decoded too.
        blocks = shard.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)
        self.batches = chain.from_iterable(map(_from_table, blocks))
        self.first = ThreadPoolExecutor(1, "stream").submit(next, self.batches)

    def begin_at(self, step: int) -> WorkerStream:
        """Sets the step that the first batch must belong to; without it, step 0."""
        self.next_step = step
        return self

    def __next__(self) -> WorkerBatch:
        """Returns the batch of the next step.

        Raises:
            RuntimeError: the stream is out of step or has ended, which is a defect that no training may go on from.
        """
        try:
            first, self.first = self.first, None
            batch = first.result() if first else next(self.batches)
        except StopIteration:
            raise RuntimeError(f"the data ended before step {self.next_step}") from None
        if (batch.step, batch.rank) != (self.next_step, self.rank):
            raise RuntimeError(f"rank {self.rank} got the batch of step {batch.step}, rank {batch.rank}; wants {self.next_step}")
        self.next_step += 1
        return batch


def _decode_slice(table: pa.Table, max_duration_s: float, columns: dict[str, str]) -> pa.Table:
    slices = [RowSlice(**row) for row in table.to_pylist()]
    return clip_table(decode_slices(slices, max_duration_s, columns=columns))


def clip_dataset(
    slices: Iterable[RowSlice],
    max_duration_s: float,
    columns: dict[str, str] = {},  # noqa: B006 (never changed)
) -> ray.data.Dataset:
    """Decodes clips, a row each, in order; a reject is a row with a `reason` and no PCM."""
    settings = {"max_duration_s": max_duration_s, "columns": columns}
    parts = [dataclasses.asdict(part) for part in slices]
    return ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        _decode_slice, batch_size=None, batch_format="pyarrow", fn_kwargs=settings
    )


def map_each(items: list[dict], function: Callable[[dict], dict]) -> Iterator[dict]:
    """Runs `function` on every item, each in a task of its own; yields the results as they come."""
    return ray.data.from_items(items, override_num_blocks=len(items)).map(function).iter_rows()


def memory_dataset(clips: list[Clip]) -> ray.data.Dataset:
    """Returns a dataset of clips in memory, with the same rows that `clip_dataset` makes of shards."""
    return ray.data.from_arrow(clip_table(clips))
