import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import pytest
from ray.data import ExecutionResources

from tests.conftest import encode_audio, plan_of, tone, write_shard
from tiny_audio.data.batch import WorkerBatch
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.stream import BLOCK_ROWS, WorkerStream, _blocks, clip_dataset, ingest_config, train_dataset
from tiny_audio.lab.process_memory import memory_sample

pytestmark = pytest.mark.usefixtures("local_ray")


def plan_over(folder, steps_per_window=2):
    groups = read_footers(list_shards(f"{folder}/train/*.parquet"))
    return plan_of(groups, seed=0, batch_rows=4, steps_per_window=steps_per_window, max_duration_s=8.0)


def split(plan, num_workers, start_step=0, num_steps=7, allowance_bytes=None, block_rows=BLOCK_ROWS):
    """Makes the workers' shares as Ray Train does; at most `allowance_bytes` of them may lie in the object store."""
    datasets = {"train": partial(train_dataset, plan, range(start_step, num_steps), block_rows=block_rows)}
    ingest = ingest_config(None)
    limits = ExecutionResources.for_limits(object_store_memory=allowance_bytes)
    ingest._get_user_execution_options("train").resource_limits = limits
    shares = ingest.configure(datasets, num_workers, None, None)
    return [WorkerStream(share["train"], rank).begin_at(start_step) for rank, share in enumerate(shares)]


def read(streams, num_steps):
    """Reads sorted ids by step over all workers, each in a thread of its own: Ray starts an epoch once all have asked."""
    steps = {}
    with ThreadPoolExecutor(len(streams)) as pool:
        for batches in pool.map(lambda stream: [next(stream) for _ in range(num_steps)], streams):
            for batch in batches:
                steps.setdefault(batch.step, []).extend(clip.id for clip in batch.clips)
    return {step: sorted(ids) for step, ids in sorted(steps.items())}


def test_the_steps_are_the_same_for_any_number_of_workers_and_from_any_start(shards, monkeypatch):
    one = read(split(plan_over(shards), 1), 7)
    assert list(one) == list(range(7))
    assert read(split(plan_over(shards), 2), 7) == one
    assert read(split(plan_over(shards), 3), 7) == one
    resumed = read(split(plan_over(shards), 2, start_step=3), 4)
    assert resumed == {step: one[step] for step in range(3, 7)}
    monkeypatch.setattr("tiny_audio.data.stream.STEPS_PER_PLAN", 2)  # windows of two steps: some lie across two planning tasks
    assert read(split(plan_over(shards), 2, start_step=1), 6) == {step: one[step] for step in range(1, 7)}


def test_blocks_of_any_size_give_the_same_steps(shards):
    """An epoch is a window of five steps and one of two; at two workers, four rows a worker make a block of two steps."""
    plan = plan_over(shards, steps_per_window=5)
    one_step_a_block = read(split(plan, 2, num_steps=14, block_rows=1), 14)
    for block_rows in (4, BLOCK_ROWS):
        assert read(split(plan, 2, num_steps=14, block_rows=block_rows), 14) == one_step_a_block
    resumed = read(split(plan, 3, start_step=3, num_steps=14), 11)  # from the middle of a window
    assert resumed == {step: one_step_a_block[step] for step in range(3, 14)}


def test_a_workers_consecutive_steps_share_a_block():
    batches = [WorkerBatch(step, 0, rank, 4, 1.0, []) for step in range(5) for rank in range(2)]
    blocks = [[(batch.step, batch.rank) for batch in block] for block in _blocks(batches, num_workers=2, num_steps=2)]
    assert blocks == [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(2, 0), (3, 0)], [(2, 1), (3, 1)], [(4, 0)], [(4, 1)]]


def test_every_good_row_of_an_epoch_comes_once_and_every_bad_one_is_counted(shards):
    stream = split(plan_over(shards), 1)[0]
    batches = [next(stream) for _ in range(7)]  # 26 rows in steps of 4
    ids = [clip.id for batch in batches for clip in batch.clips]
    rejects = {reject.id: reject.reason for batch in batches for reject in batch.rejects}
    assert rejects == {"row-005": "empty", "row-020": "truncated"}
    assert sorted([*ids, *rejects]) == [f"row-{i:03d}" for i in range(26)]


def test_a_step_waits_for_no_window_but_its_own(tmp_path):
    """The second window's file becomes a pipe, which opens once someone else opens it to write."""
    for number in (1, 2):
        rows = [(f"{number}-{i}", encode_audio(tone(0.5), "wav"), "word") for i in range(8)]
        write_shard(tmp_path / f"train/{number}.parquet", rows, 8)
    plan = plan_over(tmp_path)
    _, second = plan.windows(num_steps=4)
    pipe = Path(second.slices[0].path)
    pipe.unlink()
    os.mkfifo(pipe)
    (stream,) = split(plan, 1, num_steps=4)
    assert [len(next(stream).clips) for _ in range(2)] == [4, 4]
    pipe.open("wb").close()
    assert [reject.reason for reject in next(stream).rejects] == ["unreadable"] * 4


def test_decoding_waits_for_a_slow_reader(local_ray, tmp_path):
    """A reader takes a hundredth of 400 MB of samples, and then waits: no more than the allowance lies ready."""
    clip = encode_audio(tone(8.0), "wav")
    write_shard(tmp_path / "train/long.parquet", [(f"row-{i}", clip, "word") for i in range(1600)], 8)
    in_store_before = memory_sample(local_ray)["store"]
    (stream,) = split(plan_over(tmp_path), 1, num_steps=400, allowance_bytes=64 * 2**20)
    for _ in range(4):
        next(stream)
    time.sleep(4)  # in which all could be decoded
    assert 10 < memory_sample(local_ray)["store"] - in_store_before < 128


def test_a_stream_out_of_step_is_never_trained_through(shards):
    stream = split(plan_over(shards), 1, start_step=2)[0].begin_at(0)
    with pytest.raises(RuntimeError, match="got the batch of step 2, rank 0; wants 0"):
        next(stream)
    with pytest.raises(RuntimeError, match=r"the data ended before step|got the batch of step"):
        read(split(plan_over(shards), 1), 8)


class Shard:
    """Stands in for what Ray hands a worker; its first batch notes that it was asked for, and fails."""

    def __init__(self):
        self.asked = Event()

    def iter_batches(self, **options):
        self.asked.set()
        raise OSError("no such storage")
        yield


def test_a_stream_is_read_before_anyone_asks_and_keeps_its_error():
    shard = Shard()
    stream = WorkerStream(shard, 0)
    assert shard.asked.wait(10)
    with pytest.raises(OSError, match="no such storage"):
        next(stream)


def test_clips_keep_their_samples(tmp_path):
    clip = tone(0.7)
    write_shard(
        tmp_path / "one.parquet", [("good", encode_audio(clip, "wav"), "a  b "), ("bad", b"x" * 50, "c"), ("mute", b"", "")]
    )
    rows = clip_dataset(plan_pass(read_footers([str(tmp_path / "one.parquet")])), 8.0).take_all()
    assert [(row["id"], row["reason"], row["text"]) for row in rows] == [
        ("good", "", "a b"),
        ("bad", "not_audio", ""),
        ("mute", "no_label", ""),
    ]
    assert rows[0]["pcm"] == clip.tobytes()


def test_decode_is_kept_to_its_nodes():
    options = ingest_config("decode")._resolve_execution_options("train")
    assert options.label_selector == {"ray-subcluster": "decode"}
    assert options.preserve_order
