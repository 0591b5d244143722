"""The watchdog finds workers and data that stand still, names them and ends the workers."""

import os
import re
import threading
import time

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from tests.training.test_train import config_of, losses
from tiny_audio.config import ConfigError
from tiny_audio.lab.local_nodes import named_processes, wait_for
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.audit import audit
from tiny_audio.run.claim import CLAIM, TAKEN_OVER, claim_run
from tiny_audio.run.metrics import read_metrics
from tiny_audio.training.driver import resolve, train
from tiny_audio.training.hang_follower import HangFollower, Reminder, first_failures, hang_message
from tiny_audio.training.watchdog import (
    COMPUTING,
    DATA,
    ENDED,
    GRADIENTS,
    OTHERS,
    SAVING,
    START_S,
    STARTING,
    Activity,
    Watch,
    WorkerProcess,
    start_watch,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch():
    return Watch(10.0, Clock())


def beat(watch, rank, number, phase, step=7, rows=(), start=1):
    process = WorkerProcess(f"host{rank}", 100 + rank, "node", token=f"{start}-{rank}")
    return watch.beat(rank, process, number, Activity(phase, step, tuple(rows)))


def blamed_ranks(watch, *beats, after_s=11.0):
    """Returns the ranks that the watch blames if all workers report the same `after_s` later."""
    for values in beats:
        beat(watch, *values)
    watch.clock.now += after_s
    for values in beats:
        beat(watch, *values)
    return [worker.rank for worker in watch.stuck()]


def test_the_rank_that_stopped_is_blamed_and_not_those_waiting_for_it(watch):
    beats = [(0, 5, OTHERS), (1, 4, COMPUTING, 7, [f"row-{i}" for i in range(7)]), (2, 5, OTHERS)]
    assert blamed_ranks(watch, *beats, after_s=9.0) == []
    beat(watch, 0, 6, GRADIENTS)  # another phase in which workers meet
    watch.clock.now += 11.0
    assert blamed_ranks(watch, (0, 6, GRADIENTS), *beats[1:], after_s=0.0) == [1]
    message = hang_message(watch.stuck(), str)
    assert (
        "rank 1 on host1: has been computing for 20 s at step 7 (rows row-0, row-1, row-2, row-3, row-4 and 2 more); look"
        in message
    )
    beat(watch, 1, 5, COMPUTING)
    assert watch.stuck() == []  # the others may be waiting for it


def test_all_ranks_are_blamed_if_all_wait_for_the_others(watch):
    assert blamed_ranks(watch, (0, 5, OTHERS), (1, 5, OTHERS)) == [0, 1]


def test_a_stall_of_the_data_names_the_files(watch):
    assert blamed_ranks(watch, (0, 5, DATA), (1, 6, OTHERS)) == [0]
    message = hang_message(watch.stuck(), lambda step: f"its files, {step}")
    assert "step 7, and what is fetched with it, is read from its files, 7; look at that storage" in message
    blamed = hang_message(watch.stuck(), lambda step: f"its files, {step}", "no decode node is up; start one")
    assert blamed.endswith("waiting for data for 11 s at step 7; no decode node is up; start one")


def test_a_start_may_take_longer(watch):
    assert blamed_ranks(watch, (0, 1, STARTING)) == []
    assert blamed_ranks(watch, (0, 1, STARTING), after_s=START_S) == [0]


def test_a_rank_whose_reports_stop_is_blamed_whatever_it_did(watch):
    beat(watch, 0, 1, OTHERS), beat(watch, 1, 1, COMPUTING)
    watch.clock.now = 11.0
    beat(watch, 1, 1, COMPUTING)
    (worker,) = watch.stuck()
    assert (worker.rank, worker.frozen) == (0, True)


def test_a_verdict_reaches_only_the_workers_it_is_about(watch):
    beat(watch, 0, 1, COMPUTING), beat(watch, 1, 1, OTHERS)
    watch.expel("a hang")
    assert beat(watch, 1, 1, OTHERS) == "a hang"
    watch.forget()  # Ray Train saw them fail
    assert beat(watch, 1, 1, OTHERS) == "a hang"  # a late report, which no longer counts
    watch.clock.now = 11.0
    assert watch.stuck() == []
    assert watch.reasons() == ("", "a hang")
    watch.begin()
    assert watch.reasons() == ("", "")  # a later end of the new workers is no hang, even if they never report
    assert beat(watch, 0, 1, STARTING, start=2) == ""
    watch.end("no compiler")
    assert beat(watch, 0, 1, STARTING, start=2) == "no compiler"


def test_only_the_workers_that_failed_first_are_named(watch):
    beat(watch, 0, 1, OTHERS), beat(watch, 1, 1, COMPUTING)
    died = WorkerHealthCheckFailedError("A worker health check failed", ActorDiedError())
    watch.fail(first_failures({0: RuntimeError("Connection closed by peer"), 1: died}))
    watch.clock.now += 11.0
    assert watch.stuck() == []
    assert beat(watch, 1, 1, COMPUTING) == ENDED  # its host was only cut off, and it lives on
    assert watch.begin() == "rank 1 on host1: its process died, last heard of computing at step 7"
    assert watch.begin() == ""
    watch.fail(first_failures({2: RuntimeError("CUDA error: out of memory\nat ...")}))
    assert watch.begin() == "rank 2: RuntimeError: CUDA error: out of memory"


def test_silence_lasts_until_a_new_worker_reports(watch):
    watch.begin()
    watch.clock.now = 5.0
    assert watch.silence() == (5.0, "")  # a failed start is no failure of workers
    beat(watch, 0, 1, COMPUTING)
    watch.clock.now = 6.0
    assert watch.silence() == (1.0, "")  # as after workers were ended because there shall be fewer
    watch.fail({0: "its process died"})
    watch.fail({0: "its process died"})
    watch.clock.now = 8.0
    beat(watch, 0, 2, COMPUTING)  # a worker that has ended
    assert watch.silence() == (3.0, "rank 0 on host0: its process died, last heard of computing at step 7")
    watch.begin()
    assert watch.silence() == (3.0, "")
    assert beat(watch, 0, 1, STARTING, start=2) == ""
    assert watch.silence() == (0.0, "")


def test_warnings_become_rarer_the_longer_it_lasts():
    reminder = Reminder(60.0)
    durations_s = (59, 60, 61, 119, 121, 180, 239, 240, 3, 59, 60, 61)
    assert [duration_s for duration_s in durations_s if reminder.is_due(duration_s)] == [60, 121, 240, 60]


def test_a_follower_warns_of_silence(local_ray, shards, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tiny_audio.training.hang_follower.SILENCE_WARNING_S", 1.0)
    run = resolve(config_of(shards, tmp_path, "silent", num_workers=6))
    watch = start_watch(10.0, str(tmp_path))
    ray.get(watch.fail.remote({0: "its node is gone"}))
    with HangFollower(watch, run):
        time.sleep(3.0)
    ray.kill(watch)
    said = r"heard of for [123] s, since some failed \(rank 0: its node is gone\); 6 workers each want a CPU, and .* 4; start"
    assert re.search(said, capfd.readouterr().err)


def test_a_watch_survives_the_death_of_its_process(local_ray, tmp_path):
    watch = start_watch(10.0, str(tmp_path))
    process = WorkerProcess("host", 1, "node", "token")
    report = {"process": process, "num_activities": 1, "activity": Activity(COMPUTING, 3)}
    ray.get(watch.beat.remote(0, **report))
    (process,) = named_processes(os.getpid(), "ray::Watch")
    process.kill()
    assert ray.get(watch.beat.remote(0, **report), timeout=30) == ""
    assert ray.get(watch.silence.remote())[0] < 5.0
    ray.kill(watch)


def test_a_worker_whose_reports_do_not_get_through_ends_itself(local_ray, tmp_path):
    """As on a host that is cut off, which Ray cannot tell to end it."""

    class Worker:
        def work(self, watch):
            from tiny_audio.training import watchdog

            watchdog.LOST_S = 1.0
            with watchdog.Watchdog(watch, 0):
                time.sleep(60)

    watch = start_watch(10.0, str(tmp_path))
    work = ray.remote(num_cpus=0)(Worker).remote().work.remote(watch)
    assert ray.wait([work], timeout=5)[1]
    ray.kill(watch)
    with pytest.raises(RayActorError):
        ray.get(work, timeout=40)


def test_a_start_ends_when_a_later_one_takes_the_run_over(local_ray, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_audio.training.hang_follower.LOOK_S", 0.1)
    run = resolve(config_of(shards, tmp_path, "taken"))
    watch = start_watch(10.0, str(run.folder))
    claim_run(run.folder, "an earlier start")  # whose run it is until the workers are up
    with HangFollower(watch, run) as follower:
        time.sleep(2.5)
        assert ray.get(watch.reasons.remote())[0] == ""
        claim_run(run.folder, run.claim)
        wait_for(lambda: follower.is_owner, "a look at the claim", 10)
        claim_run(run.folder, "a later start")
        wait_for(lambda: ray.get(watch.reasons.remote())[0] == TAKEN_OVER, "the end", 10)
    ray.kill(watch)


def test_a_hang_is_told_while_the_storage_hangs(local_ray, shards, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tiny_audio.training.hang_follower.LOOK_S", 0.1)
    run = resolve(config_of(shards, tmp_path, "hanging"))
    watch = start_watch(1.0, str(run.folder))
    run.folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(run.folder / CLAIM)  # a file whose reading does not end
    process = WorkerProcess("host", os.getpid(), ray.get_runtime_context().get_node_id(), "token")
    ray.get(watch.beat.remote(0, process, 1, Activity(SAVING, 3)))
    with HangFollower(watch, run):
        wait_for(lambda: ray.get(watch.reasons.remote())[1], "the verdict", 20)
    ray.kill(watch)
    assert "rank 0 on host: its process stands still or is gone; it has been saving" in capfd.readouterr().err


def freeze_a_worker_after(run_dir, step: int) -> threading.Thread:
    """Starts a thread that suspends one worker's process once the run has logged `step`."""

    def wait_and_freeze():
        while not any(line["step"] >= step for line in read_metrics(run_dir)):
            time.sleep(0.02)
        named_processes(os.getpid(), TRAIN_WORKER)[0].suspend()

    thread = threading.Thread(target=wait_and_freeze, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow  # a minute
def test_a_run_recovers_from_a_frozen_worker_by_itself(local_ray, shards, tmp_path, capfd):
    changes = {"num_steps": 20, "num_workers": 2, "zero_stage": 2, "checkpoint_every": 5, "max_failures": 1}
    config = config_of(shards, tmp_path, "frozen", **changes, watchdog_timeout_s=10.0)
    freezer = freeze_a_worker_after(config.run_dir, 6)
    train(config)
    freezer.join(1)
    (message,) = [line for line in capfd.readouterr().err.splitlines() if "the run stood still" in line]
    rows = r"(\(rows row-.*\)|; step \d+, and what .*\.parquet.*)"
    frozen = r"rank [01] on \S+: its process stands still or is gone; it has been .* for (\d+) s at step \d+ ?"
    duration_s = int(re.search(f"{frozen}{rows}; look at that worker", message)[1])
    assert 10 <= duration_s < 60
    assert len(losses(config)) == 20
    assert audit(config)[0].num_missing == audit(config)[0].num_twice == 0


def test_stalled_data_end_the_run_with_the_name_of_the_file(local_ray, shards, tmp_path):
    """A file that opens but yields no bytes, as on storage that hangs, takes a shard's place once the footers are read."""
    folder = tmp_path / "train"
    folder.mkdir()
    for path in (shards / "train").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stalled = folder / "train-1.parquet"

    def stall():
        stalled.unlink()
        os.mkfifo(stalled)

    config = config_of(shards, tmp_path, "stalled", num_steps=12, watchdog_timeout_s=6.0)
    config.data.train = f"{folder}/*.parquet"
    try:
        message = rf"has been waiting for data for \d+ s at step (\d+); step \1, .* is read from .*{stalled}[,;]"
        with pytest.raises(ConfigError, match=message):
            train(config, stall)
    finally:
        os.close(os.open(stalled, os.O_RDWR))  # a reader that still waits gets its end
