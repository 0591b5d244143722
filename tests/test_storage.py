"""A run on object storage: a real server of S3's API on this machine. Kept, gone on from, audited and read by its URL."""

import json
from pathlib import Path

import pytest
import torch
from upath import UPath

from tests.run.test_checkpoint import WEIGHTS, kept, write_run
from tests.training.test_train import config_of, losses
from tiny_audio.config import ConfigError, TrainConfig, storage_path
from tiny_audio.config_files import load_config
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.window import read_model_window_s
from tiny_audio.run.audit import EpochAudit, audit
from tiny_audio.run.checkpoint import best_checkpoint, checkpoint_folder, damage, latest_checkpoint, load_checkpoint, load_weights
from tiny_audio.run.metrics import append_metrics, append_warning, follow_folder, read_metrics
from tiny_audio.storage import local_folder, put, require_model, written_folder
from tiny_audio.training.driver import train


def test_checkpoints_are_kept_deleted_and_passed_over_as_in_a_folder(s3):
    scores = {10: {"val_wer": 0.1}, 20: {"val_wer": 0.3}, 30: {"val_wer": 0.2}, 40: {}}
    run_dir, said = write_run(f"{s3}/checkpoints", scores, keep=2), []
    assert kept(run_dir) == [10, 30, 40]
    weights, moments, progress = load_checkpoint(latest_checkpoint(run_dir))
    assert (set(weights), moments, progress.step) == (set(WEIGHTS), {}, 40)
    put(checkpoint_folder(run_dir, 10) / "projector.safetensors", b"other")
    assert "is damaged" in damage(checkpoint_folder(run_dir, 10))
    assert best_checkpoint(run_dir, "val_wer", said.append).name == "step-00000030"
    assert len(said) == 1
    (checkpoint_folder(run_dir, 40) / "SHA256SUMS").unlink()  # cut off: the checksums come last
    assert latest_checkpoint(run_dir, said.append).name == "step-00000030"
    write_run(f"{s3}/checkpoints", {40: {"val_wer": 0.0}}, keep=1)
    assert kept(run_dir) == [40]
    assert not damage(latest_checkpoint(run_dir))


def test_lines_come_as_they_are_added_and_a_step_that_ran_twice_counts_as_it_ran_last(s3):
    run_dir = storage_path(f"{s3}/lines")
    assert follow_folder(run_dir / "metrics.jsonl")() == read_metrics(run_dir) == []
    append_metrics(run_dir, {"step": 1, "loss": 3.0})
    new_lines = follow_folder(run_dir / "metrics.jsonl")
    assert new_lines() == []
    worker = UPath(f"{s3}/lines", skip_instance_cache=True)  # another client: what it writes must be seen
    for loss in (2.0, 1.0):
        append_metrics(worker, {"step": 2, "loss": loss})
    append_warning(worker, 2, "said")
    assert [line.get("loss") for line in new_lines()] == [2.0, 1.0, None]
    assert new_lines() == []
    assert read_metrics(run_dir) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]


def test_a_folder_within_a_folder_is_copied_both_ways(s3):
    """As of a model that has an adapter."""
    with written_folder(storage_path(f"{s3}/nested")) as folder:
        (Path(folder) / "config.json").write_text("{}")
        (Path(folder) / "adapter").mkdir()
        (Path(folder) / "adapter/adapter_config.json").write_text("[]")
    for url in (f"{s3}/nested", f"{s3}/nested/"):
        with local_folder(url) as copy:
            files = {path.relative_to(copy).as_posix(): path.read_text() for path in Path(copy).rglob("*") if path.is_file()}
        assert files == {"config.json": "{}", "adapter/adapter_config.json": "[]"}


def test_storage_that_is_not_there_is_one_line(s3, shards, tmp_path):
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket/runs/run: cannot be .*: The specified bucket does not exist$"):
        train(config_of(shards, "s3://no-such-bucket/runs", "run"))
    with pytest.raises(ConfigError, match="no saved model there"):
        require_model(f"{s3}/none")
    with pytest.raises(ConfigError, match=r"nothing://a: Unsupported filesystem: 'nothing' \(pip install"):
        TrainConfig(runs_dir="nothing://a")


@pytest.mark.usefixtures("local_ray")
def test_a_run_on_object_storage_goes_on_and_loses_no_row(s3, shards, capsys):
    config = config_of(shards, f"{s3}/runs", "run", num_steps=3)
    train(config)
    config.num_steps = 6
    training = train(config)
    said = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1]) for line in said if line.startswith("step")] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert len(losses(config)) == training["step"] == 6
    assert audit(load_config(TrainConfig, f"{s3}/runs/run/config.yaml"))[0] == EpochAudit(0, 26, 24, 2, 0, 0)
    assert kept(config.run_dir)[-1] == 6
    assert json.loads((config.run_dir / "training.json").read_bytes()) == training
    assert list((config.run_dir / "tensorboard").iterdir())
    url = require_model(f"{s3}/runs/run/model")
    assert read_model_window_s(url) == 8.0
    weights = load_weights(best_checkpoint(config.run_dir, config.score_metric))
    read = ASRModel.from_pretrained(url).projector.state_dict()
    assert all(torch.equal(read[name], weight) for name, weight in weights.items())
