"""Which validation is the best, when a run is over, and which checkpoint a model comes from."""

import json
import math

import pytest

from tiny_audio.checkpoint import (
    UNSCORED,
    Progress,
    best_checkpoint,
    checkpoint_metrics,
    load_progress,
    save_checkpoint,
)
from tiny_audio.config import DataConfig, TrainConfig


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


@pytest.mark.parametrize(("metric", "step"), [("val_wer", 30), ("val_loss", 20)])
def test_the_best_checkpoint_is_the_lowest_of_equals_the_last(tmp_path, metric, step):
    assert best_checkpoint(tmp_path, metric) is None
    scores = {10: {}, 20: {"val_loss": 2.0, "val_wer": 0.1}, 30: {"val_loss": 2.2, "val_wer": 0.1}, 40: {"val_loss": 2.1}}
    results = [{"checkpoint_dir_name": f"step-{s}", "metrics": checkpoint_metrics(s, found)} for s, found in scores.items()]
    (tmp_path / "checkpoints").mkdir()
    snapshot = {"checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    (tmp_path / "checkpoints" / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    assert best_checkpoint(tmp_path, metric).name == f"step-{step}"
