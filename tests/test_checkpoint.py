"""Which validation is the best, when a run is over, which checkpoint a model comes from, and what damage does to that."""

import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from tiny_audio.asr_modeling import Projector
from tiny_audio.checkpoint import (
    UNSCORED,
    Progress,
    best_checkpoint,
    checkpoint_metrics,
    damage,
    latest_checkpoint,
    leave_out_damaged,
    load_checkpoint,
    load_progress,
    new_checkpoint_folder,
    save_checkpoint,
)
from tiny_audio.config import ConfigError, DataConfig, TrainConfig

SNAPSHOT = "checkpoints/checkpoint_manager_snapshot.json"
SCORES = {10: {"val_wer": 0.3}, 20: {"val_wer": 0.1}, 30: {"val_wer": 0.2}}


def validate(progress, scores, metric="val_wer"):
    """Steps that were the best so far, of a validation a step"""
    best = []
    for score in scores:
        progress.step += 1
        if progress.count_validation({metric: score}, metric):
            best.append(progress.step)
    return best


def test_patience_counts_validations_without_a_better_one_over_a_restart(tmp_path):
    config = TrainConfig(num_steps=100, early_stopping_patience=3)
    progress = Progress()
    assert validate(progress, [1.2, 0.9, 0.9, 1.0]) == [1, 2]  # equal is no better
    assert not progress.end_reason(config)
    save_checkpoint(tmp_path, {}, {}, progress)
    resumed = load_progress(tmp_path)
    assert resumed == progress
    assert validate(resumed, [0.95]) == []
    assert resumed.end_reason(config) == "no better val_wer in 3 validations since step 2"
    assert not resumed.end_reason(TrainConfig(num_steps=100))
    assert validate(resumed, [0.5]) == [6]
    assert not resumed.end_reason(config)
    resumed.step = 100
    assert resumed.end_reason(config) == "all 100 steps are done"


def test_a_score_that_is_no_number_is_never_the_best():
    progress = Progress()
    assert validate(progress, [math.nan, 3.0, math.nan], "val_loss") == [2]
    assert checkpoint_metrics(7, {"val_loss": math.nan}) == {"step": 7, "val_loss": UNSCORED, "val_wer": UNSCORED}
    assert checkpoint_metrics(7, {"val_loss": 2.0, "val_wer": 0.0}) == {"step": 7, "val_loss": 2.0, "val_wer": 0.0}


def test_wer_goes_before_loss_unless_no_rows_are_meant_for_it():
    assert TrainConfig().score_metric == "val_wer"
    assert TrainConfig(data=DataConfig(max_wer_rows=0)).score_metric == "val_loss"
    progress = Progress()
    validate(progress, [2.0], "val_loss")
    assert progress.count_validation({"val_loss": 3.0, "val_wer": 1.5}, "val_wer")  # the run is now scored by WER: a new start


def write_run(run_dir, scores=None):
    """A run's checkpoints as train.py and Ray Train leave them, by step and scores."""
    (run_dir / "checkpoints").mkdir()
    progress, results = Progress(), []
    for step, found in (scores or SCORES).items():
        progress.step = step
        if "val_wer" in found:
            progress.count_validation(found, "val_wer")
        folder = new_checkpoint_folder(run_dir, step)
        save_checkpoint(folder, {"weight": torch.full((3,), float(step))}, {"exp_avg.weight": torch.zeros(3)}, progress)
        results.append({"checkpoint_dir_name": folder.name, "metrics": checkpoint_metrics(step, found)})
        indices = list(range(len(results)))
        snapshot = {"checkpoint_results": results, "latest_checkpoint_result": results[-1], "checkpoint_report_indices": indices}
        (run_dir / SNAPSHOT).write_text(json.dumps(snapshot))
    return run_dir


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
    write_run(
        tmp_path, {10: {}, 20: {"val_loss": 2.0, "val_wer": 0.1}, 30: {"val_loss": 2.2, "val_wer": 0.1}, 40: {"val_loss": 2.1}}
    )
    assert best_checkpoint(tmp_path, metric).name == f"step-{step:08d}"


@pytest.mark.parametrize("hurt", [flip_a_byte, cut_off, Path.unlink, lambda path: path.write_text("{")])
@pytest.mark.parametrize("name", ["projector.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, capsys, name, hurt):
    run_dir = write_run(tmp_path)
    assert latest(run_dir) == "step-00000030"
    leave_out_damaged(run_dir, "val_wer")
    assert not capsys.readouterr().err
    newest = run_dir / "checkpoints" / "step-00000030"
    hurt(newest / name)
    assert str(newest) in damage(newest)
    assert latest(run_dir) == "step-00000020"
    before = (run_dir / SNAPSHOT).read_text()
    leave_out_damaged(run_dir, "val_wer")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(newest) in lines[0]
    assert "last whole one is step-00000020" in lines[0]
    assert (run_dir / SNAPSHOT).read_text() != before
    leave_out_damaged(run_dir, "val_wer")  # the list is mended: said once
    assert not capsys.readouterr().err


def test_a_missing_folder_and_a_damaged_best_one_leave_the_next_best(tmp_path):
    run_dir = write_run(tmp_path)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000030")
    flip_a_byte(run_dir / "checkpoints" / "step-00000020" / "projector.safetensors")
    assert best_checkpoint(run_dir, "val_wer").name == latest(run_dir) == "step-00000010"
    leave_out_damaged(run_dir, "val_wer")  # Ray Train does not start where its list names a missing folder
    listed = json.loads((run_dir / SNAPSHOT).read_text())["checkpoint_results"]
    assert [result["checkpoint_dir_name"] for result in listed] == ["step-00000010"]


def test_a_run_without_a_whole_checkpoint_stops(tmp_path, capsys):
    run_dir = write_run(tmp_path)
    for folder in (run_dir / "checkpoints").glob("step-*"):
        flip_a_byte(folder / "optimizer.safetensors")
    remedy = "no checkpoint of the run is whole: restore .*checkpoints from a backup, or delete .* to start the run anew"
    for ask in (latest_checkpoint, lambda run: best_checkpoint(run, "val_wer"), lambda run: leave_out_damaged(run, "val_wer")):
        with pytest.raises(ConfigError, match=rf"optimizer\.safetensors is damaged.*{remedy}"):
            ask(run_dir)
    (run_dir / SNAPSHOT).unlink()
    with pytest.raises(ConfigError, match=remedy):
        latest_checkpoint(run_dir)
    (run_dir / SNAPSHOT).write_text("{")
    for folder in (run_dir / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"snapshot\.json is damaged, and no checkpoint is beside it"):
        latest_checkpoint(run_dir)


def test_a_first_save_that_was_cut_off_is_no_checkpoint(tmp_path):
    run_dir = write_run(tmp_path, {10: {}})
    (run_dir / SNAPSHOT).unlink()
    (run_dir / "checkpoints" / "step-00000010" / "SHA256SUMS").unlink()
    assert latest_checkpoint(run_dir) is None
    assert not list(new_checkpoint_folder(run_dir, 10).iterdir())


@pytest.mark.parametrize("hurt", [cut_off, Path.unlink])
def test_a_lost_list_is_made_anew_from_the_folders(tmp_path, capsys, hurt):
    """Ray Train does not write it at one stroke."""
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

    run_dir = write_run(tmp_path)
    hurt(run_dir / SNAPSHOT)
    assert latest(run_dir) == "step-00000030"
    leave_out_damaged(run_dir, "val_wer")
    assert capsys.readouterr().err.count("is made anew") == 1
    state = _CheckpointManagerState.parse_obj(json.loads((run_dir / SNAPSHOT).read_text()))
    assert [result.checkpoint_dir_name[-2:] for result in state.checkpoint_results] == ["30", "10", "20"]  # the best last
    assert state.checkpoint_report_indices == [2, 0, 1]
    assert state.latest_checkpoint_result.checkpoint_dir_name == "step-00000030"
    assert best_checkpoint(run_dir, "val_wer").name == "step-00000020"


def test_a_folder_that_ray_train_lists_is_not_written_again(tmp_path):
    """It deletes folders by name: with two of a name, the old one's end would be the new one's."""
    run_dir = write_run(tmp_path)
    flip_a_byte(run_dir / "checkpoints" / "step-00000030" / "state.json")
    assert new_checkpoint_folder(run_dir, 30).name == "step-00000030-again"
    leave_out_damaged(run_dir, "val_wer")
    assert new_checkpoint_folder(run_dir, 30).name == "step-00000030"


def test_a_full_disk_says_how_much_it_takes_and_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    run_dir, written = write_run(tmp_path), []

    def fsync(number):
        written.append(number)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tiny_audio.checkpoint.os.fsync", fsync)
    folder = new_checkpoint_folder(run_dir, 40)
    said = rf"no checkpoint written to {folder} \(No space left on device\): it takes 8\.\d MB, and \d+\.\d MB are free"
    with pytest.raises(OSError, match=said):
        save_checkpoint(folder, {"weight": torch.zeros(2_000_000)}, {}, Progress(step=40))
    assert not folder.exists()
    assert latest(run_dir) == "step-00000030"
    assert not any(damage(folder) for folder in (run_dir / "checkpoints").glob("step-*"))


def test_a_checkpoint_of_the_full_size_takes_at_most_145_mb(tmp_path):
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Projector(1280, 2048).named_parameters()}
    assert sum(shape.numel() for shape in shapes.values()) == 11_730_944
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    moments = {f"{moment}.{name}": weight for moment in ("exp_avg", "exp_avg_sq") for name, weight in weights.items()}
    moments = {name: moment.clone() for name, moment in moments.items()}
    save_checkpoint(tmp_path, weights, moments, Progress())
    assert 140e6 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 145e6
    assert set(load_checkpoint(tmp_path)[1]) == set(moments)
