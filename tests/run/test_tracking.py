"""Trackers get a run's lines; one that fails is no harm, and none is told a secret."""

import json
import struct
from dataclasses import replace

import pytest
from tensorboardX.proto.event_pb2 import Event

from tiny_audio.config import ConfigError, DataConfig, TrainConfig
from tiny_audio.run import tracking
from tiny_audio.run.metrics import MetricsFollower, append_metrics, follow_file
from tiny_audio.run.tracking import Tracker, Tracking, flat_config, require_trackers

RATES = {"learning_rate": 0.25, "audio_s_per_s": 30.0, "data_wait_share": 0.5, "num_rejected": 3}
LINES = [{"step": 10, "loss": 2.5, **RATES}, {"step": 20, "loss": 1.5, **RATES}, {"step": 20, "val_loss": 2.0, "val_wer": 0.5}]


@pytest.fixture
def config(tmp_path):
    data = DataConfig(train="s3://KEY:SECRET@bucket/train/*.parquet", dev="https://host/dev.parquet?X-Amz-Signature=SECRET")
    config = TrainConfig(name="run", runs_dir=str(tmp_path), data=data)
    config.run_dir.mkdir()
    return config


def events(run_dir):
    """Every event of the run's TensorBoard files, oldest file first. A record is length, its check, data, its check."""
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(run_dir):
    values = [(event.step, value) for event in events(run_dir) for value in event.summary.value]
    return [(step, value.tag, value.simple_value) for step, value in values if not value.tag.startswith("config")]


def test_tensorboard_files_hold_what_metrics_jsonl_holds(config):
    with Tracking(config) as trackers, MetricsFollower(config.run_dir, 20, [trackers.log]):
        for line in LINES:
            append_metrics(config.run_dir, line)
    expected = [(line["step"], name, value) for line in LINES for name, value in line.items() if name != "step"]
    assert scalars(config.run_dir) == expected
    text = "".join(str(event.summary) for event in events(config.run_dir) if event.summary.value)
    assert "optimizer.learning_rate: 0.0003" in text


def test_lines_are_followed_past_a_disk_that_fails_for_a_moment(tmp_path):
    path = tmp_path / "metrics.jsonl"
    new_lines = follow_file(path)
    assert new_lines() == []  # not there yet
    append_metrics(tmp_path, {"step": 1})
    assert new_lines() == [{"step": 1}]
    path.rename(tmp_path / "kept")
    path.mkdir()
    assert new_lines() == []  # cannot be read
    path.rmdir()
    (tmp_path / "kept").rename(path)
    append_metrics(tmp_path, {"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # half written
    assert new_lines() == [{"step": 2}]
    with path.open("a") as file:
        file.write('ss": 0.5}\n')
    assert new_lines() == [{"step": 3, "loss": 0.5}]


def test_a_run_that_went_back_hides_what_it_does_again(config):
    for steps in ((10, 20, 30, 20, 30), (30, 40)):  # workers that died after step 30; then a start from a checkpoint
        with Tracking(config) as trackers:
            for step in steps:
                trackers.log({"step": step, "loss": 1.0})
    starts = [event.step for event in events(config.run_dir) if event.HasField("session_log")]
    assert starts == [10, 20, 30]  # what each hides: its own step, and those after it, of the files before


def test_no_tracker_is_told_a_secret(config, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "SECRET")
    told = flat_config(config)
    assert told["data.train"] == "s3://bucket/train/*.parquet"
    assert told["data.dev"] == "https://host/dev.parquet"
    assert told["trackers"] == ["tensorboard"]
    with Tracking(config) as trackers:
        trackers.log(LINES[0])
    assert "SECRET" not in "".join(path.read_bytes().decode("latin-1") for path in (config.run_dir / "tensorboard").iterdir())


def test_a_mix_of_datasets_is_one_value_without_a_secret(config):
    config.data.train = {"s3://KEY:SECRET@bucket/a/*.parquet": 1.0, "b:c:train": 0.5}
    flat = flat_config(config)
    assert flat["data.train"] == "s3://bucket/a/*.parquet x 1, b:c:train x 0.5"
    assert "SECRET" not in str(flat)


def test_a_tracker_that_fails_warns_once_and_the_others_go_on(config, monkeypatch, capsys):
    calls, kept = [], []

    def no_network(values, step):
        calls.append(step)
        raise ConnectionError("no route to https://user:SECRET@host\nmore")

    monkeypatch.setattr(tracking, "_wandb", lambda config: Tracker(no_network, lambda failed: calls.append("closed")))
    monkeypatch.setattr(tracking, "_mlflow", lambda config: Tracker(lambda values, step: kept.append(step), kept.append))
    with Tracking(replace(config, trackers=["wandb", "mlflow"])) as trackers:
        for line in LINES:
            trackers.log(line)
    assert calls == [10]
    assert kept == [10, 20, 20, False]
    assert capsys.readouterr().err.splitlines() == [
        "warning: tracker wandb failed (no route to https://host more); the run goes on without it, see metrics.jsonl"
    ]


def test_a_tracker_that_is_missing_or_unknown_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "no_such_package").mkdir()  # W&B leaves a folder of its name behind: no package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tracking.PACKAGES, "mlflow", "no_such_package")
    with pytest.raises(ConfigError, match="mlflow is not installed; pip install no_such_package"):
        require_trackers(["tensorboard", "mlflow"])
    with pytest.raises(ConfigError, match="trackers must be tensorboard, wandb or mlflow, not 'neptune'"):
        TrainConfig(trackers=["neptune"])


def test_mlflow_keeps_one_run_over_two_starts(config, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for line in LINES[:2]:
        with Tracking(replace(config, trackers=["mlflow"])) as trackers:
            trackers.log(line)
    client = mlflow.MlflowClient(f"sqlite:///{config.run_dir.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny_audio").experiment_id])
    assert run.info.run_id == json.loads((config.run_dir / "tracking.json").read_text())["mlflow"]
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(10, 2.5), (20, 1.5)]
    assert run.data.params["data.train"] == "s3://bucket/train/*.parquet"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")


def test_wandb_keeps_a_run_offline(config, monkeypatch):
    pytest.importorskip("wandb.sdk", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MY_TOKEN", "SECRET")
    with Tracking(replace(config, trackers=["wandb"])) as trackers:
        for line in LINES:
            trackers.log(line)
        assert trackers.trackers
    run_id = json.loads((config.run_dir / "tracking.json").read_text())["wandb"]
    (kept,) = (config.run_dir / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    assert b"val_wer" in kept.read_bytes()
    assert not [path for path in kept.parent.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
