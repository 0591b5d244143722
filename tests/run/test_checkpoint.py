"""Which validation is the best, when a run is over, which checkpoint a model comes from, and what damage does to that."""

import errno
import math
import os
import re
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from tiny_audio.config import ConfigError, DataConfig, TrainConfig, storage_path
from tiny_audio.model.projectors import MLPProjector
from tiny_audio.run.checkpoint import (
    CheckpointWriter,
    Progress,
    best_checkpoint,
    checkpoint_folder,
    damage,
    latest_checkpoint,
    load_checkpoint,
    load_progress,
    save_checkpoint,
    state_bytes,
)
from tiny_audio.run.claim import claim_run, require_claim

SCORES = {10: {"val_wer": 0.3}, 20: {"val_wer": 0.1}, 30: {"val_wer": 0.2}}


def validate(progress, scores, metric="val_wer"):
    """Validates once a step; returns the steps that were the best so far."""
    best = []
    for score in scores:
        progress.step += 1
        if progress.count_validation({metric: score}, metric):
            best.append(progress.step)
    return best


def test_patience_counts_validations_without_a_better_one_over_a_restart(tmp_path):
    limits, progress = {"num_steps": 100, "patience": 3, "metric": "val_wer"}, Progress()
    assert validate(progress, [1.2, 0.9, 0.9, 1.0]) == [1, 2]  # equal is no better
    assert not progress.end_reason(**limits)
    save_checkpoint(tmp_path, {}, {}, state_bytes(progress))
    resumed = load_progress(tmp_path)
    assert resumed == progress
    assert validate(resumed, [0.95]) == []
    assert resumed.end_reason(**limits) == "no better val_wer in 3 validations since step 2"
    assert not resumed.end_reason(100, None, "val_wer")
    assert validate(resumed, [0.5]) == [6]
    assert not resumed.end_reason(**limits)
    resumed.step = 100
    assert resumed.end_reason(**limits) == "all 100 steps are done"


def test_a_score_that_is_no_number_is_never_the_best():
    progress = Progress()
    assert validate(progress, [math.nan, 3.0, math.nan], "val_loss") == [2]


def test_wer_goes_before_loss_unless_no_rows_are_meant_for_it():
    assert TrainConfig().score_metric == "val_wer"
    assert TrainConfig(data=DataConfig(max_wer_rows=0)).score_metric == "val_loss"
    progress = Progress()
    validate(progress, [2.0], "val_loss")
    assert progress.count_validation({"val_loss": 3.0, "val_wer": 1.5}, "val_wer")  # the run is now scored by WER: a new start


WEIGHTS = {"weight": torch.zeros(3)}


def write_run(runs_dir, scores=None, keep=9, metric="val_wer"):
    """A run's checkpoints as its rank 0 writes them, by step and scores."""
    writer = CheckpointWriter(storage_path(str(runs_dir)) / "train", keep, metric)
    for step, step_scores in (scores or SCORES).items():
        writer.begin(WEIGHTS, {}, Progress(step=step, scores=step_scores))
    writer.wait()
    assert not writer.error
    return writer.run_dir


def kept(run_dir) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").iterdir())


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-4])


def latest(run_dir) -> str:
    return latest_checkpoint(run_dir).name


@pytest.mark.parametrize(("metric", "step"), [("val_wer", 30), ("val_loss", 20)])
def test_the_best_checkpoint_is_the_lowest_of_equals_the_last(tmp_path, metric, step):
    assert best_checkpoint(tmp_path, metric) is None
    run_dir = write_run(
        tmp_path, {10: {}, 20: {"val_loss": 2.0, "val_wer": 0.1}, 30: {"val_loss": 2.2, "val_wer": 0.1}, 40: {"val_loss": 2.1}}
    )
    assert best_checkpoint(run_dir, metric).name == f"step-{step:08d}"


@pytest.mark.parametrize("hurt", [flip_a_byte, cut_off, Path.unlink, lambda path: path.write_text("{")])
@pytest.mark.parametrize("name", ["projector.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, name, hurt):
    run_dir, warnings = write_run(tmp_path), []
    assert latest_checkpoint(run_dir, warnings.append).name == "step-00000030"
    newest = checkpoint_folder(run_dir, 30)
    hurt(newest / name)
    assert str(newest) in damage(newest)
    assert latest_checkpoint(run_dir, warnings.append).name == "step-00000020"
    (line,) = warnings
    assert str(newest) in line
    cut_off_save = name == "SHA256SUMS" and hurt is Path.unlink  # looks like one
    assert ("cut off, and step-00000020 is taken" if cut_off_save else "passed over, and step-00000020 taken") in line


def test_a_missing_folder_and_a_damaged_best_one_leave_the_next_best(tmp_path):
    run_dir = write_run(tmp_path)
    shutil.rmtree(checkpoint_folder(run_dir, 30))
    flip_a_byte(checkpoint_folder(run_dir, 20) / "projector.safetensors")
    assert best_checkpoint(run_dir, "val_wer").name == latest(run_dir) == "step-00000010"


@pytest.mark.parametrize(
    ("number", "is_damage"), [(errno.EIO, True), (errno.EBADMSG, True), (errno.ESTALE, False), (errno.EACCES, False)]
)
def test_a_disk_that_does_not_answer_costs_no_checkpoint(tmp_path, monkeypatch, number, is_damage):
    """A shared disk is asked again at the next start; only what it has lost for good is damage."""
    run_dir, real = write_run(tmp_path), Path.open

    def failing(path, *arguments, **options):
        if path.parent.name == "step-00000030" and path.name == "projector.safetensors":
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    if is_damage:
        assert latest(run_dir) == "step-00000020"
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            latest(run_dir)


def test_a_run_without_a_whole_checkpoint_stops(tmp_path):
    run_dir = write_run(tmp_path)
    for folder in (run_dir / "checkpoints").iterdir():
        flip_a_byte(folder / "optimizer.safetensors")
    remedy = "no checkpoint of the run is whole: restore .*checkpoints from a backup, or delete .* to start the run anew"
    for ask in (latest_checkpoint, lambda run: best_checkpoint(run, "val_wer")):
        with pytest.raises(ConfigError, match=rf"optimizer\.safetensors is damaged.*{remedy}"):
            ask(run_dir)


def test_a_save_that_was_cut_off_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    run_dir, warnings = write_run(tmp_path, {10: {}}), []
    (checkpoint_folder(run_dir, 10) / "SHA256SUMS").unlink()
    assert latest_checkpoint(run_dir, warnings.append) is None
    assert warnings == [f"{checkpoint_folder(run_dir, 10)}: this save was cut off, and the run begins with its first step"]
    write_run(tmp_path, {12: {}})
    assert kept(run_dir) == [12]


@pytest.mark.parametrize(
    ("scores", "steps"),
    [
        ({10: {"val_wer": 0.1}, 20: {"val_wer": 0.3}, 30: {"val_wer": 0.2}, 40: {}, 50: {"val_wer": 0.4}}, [10, 30, 50]),
        ({10: {}, 20: {}, 30: {}, 40: {}}, [30, 40]),
        ({10: {"val_wer": 0.1}, 20: {"val_wer": 0.1}, 30: {"val_wer": 0.1}}, [20, 30]),
    ],
    ids=["the best and the last", "no validations", "equals"],
)
def test_the_best_are_kept_and_the_last(tmp_path, scores, steps):
    assert kept(write_run(tmp_path, scores, keep=2)) == steps


def test_a_step_is_saved_again_over_a_damaged_one_and_later_damaged_ones_go(tmp_path):
    run_dir = write_run(tmp_path)
    for step in (20, 30):
        flip_a_byte(checkpoint_folder(run_dir, step) / "projector.safetensors")
    assert latest(run_dir) == "step-00000010"
    write_run(tmp_path, {20: {"val_wer": 0.2}})
    assert kept(run_dir) == [10, 20]
    assert load_progress(latest_checkpoint(run_dir)).scores == {"val_wer": 0.2}


def test_a_checkpoint_is_written_while_the_run_goes_on_as_it_was_at_its_step(tmp_path, monkeypatch):
    """Checkpoints are written one at a time, and the old ones go only when the new one is whole."""
    run_dir, may_write = write_run(tmp_path, keep=1), threading.Event()
    writer = CheckpointWriter(run_dir, 1, "val_wer")
    assert kept(run_dir) == [20, 30]
    monkeypatch.setattr("tiny_audio.run.checkpoint.save", lambda tensors: may_write.wait(10) and b"bytes of them")
    progress = Progress(step=40, scores={"val_wer": 0.0}, rejects={"yodas": {"empty": 1}})
    writer.begin(WEIGHTS, {}, progress)
    progress.step, progress.rejects["yodas"]["empty"] = 41, 2
    assert latest(run_dir) == "step-00000030"
    assert kept(run_dir)[:2] == [20, 30]
    second = threading.Thread(target=writer.begin, args=(WEIGHTS, {}, Progress(step=50)))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    may_write.set()
    second.join(10)
    writer.wait()
    assert kept(run_dir) == [40, 50]
    written = load_progress(checkpoint_folder(run_dir, 40))
    assert (written.step, written.rejects) == (40, {"yodas": {"empty": 1}})


def test_a_write_that_was_not_begun_when_the_run_was_taken_over_is_not_done(tmp_path):
    run_dir = write_run(tmp_path)
    writer = CheckpointWriter(run_dir, 1, "val_wer", partial(require_claim, tmp_path, "a start"))
    claim_run(tmp_path, "a start")
    claim_run(tmp_path, "a later one")
    writer.begin(WEIGHTS, {}, Progress(step=40))
    writer.wait()
    assert "was started again meanwhile" in writer.error
    assert kept(run_dir) == [10, 20, 30]


def test_a_full_disk_says_how_much_it_takes_and_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    run_dir, written = write_run(tmp_path), []
    writer = CheckpointWriter(run_dir, 1, "val_wer")

    def fsync(number):
        written.append(number)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fsync)
    writer.begin({"weight": torch.zeros(2_000_000)}, {}, Progress(step=40))
    writer.begin(WEIGHTS, {}, Progress(step=50))  # not begun: the run is about to stop
    writer.wait()
    message = rf"no checkpoint written to {run_dir}/checkpoints/step-00000040 \(No space left on device\): "
    assert re.fullmatch(message + r"it takes 8\.\d MB, and \d+\.\d MB are free there; make room .* as they were", writer.error)
    assert kept(run_dir) == [10, 20, 30]
    assert not any(damage(folder) for folder in (run_dir / "checkpoints").iterdir())


def test_a_checkpoint_of_the_full_size_takes_at_most_145_mb(tmp_path):
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in MLPProjector(1280, 2048).named_parameters()}
    assert sum(shape.numel() for shape in shapes.values()) == 11_730_944
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    moments = {f"{moment}.{name}": weight for moment in ("exp_avg", "exp_avg_sq") for name, weight in weights.items()}
    moments = {name: moment.clone() for name, moment in moments.items()}
    save_checkpoint(tmp_path, weights, moments, state_bytes(Progress()))
    assert 140e6 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 145e6
    assert set(load_checkpoint(tmp_path)[1]) == set(moments)
