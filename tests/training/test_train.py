"""Training runs by its real path on a local Ray: shards, Ray Data, Ray Train, DeepSpeed, the embedded backbones."""

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import DECODER, ENCODER, tone
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.packing import pack
from tiny_audio.run.audit import audit
from tiny_audio.run.checkpoint import (
    Progress,
    checkpoint_folder,
    latest_checkpoint,
    load_progress,
    save_checkpoint,
    state_bytes,
)
from tiny_audio.run.claim import claim_run, require_claim
from tiny_audio.run.ledger import LEDGER
from tiny_audio.run.metrics import progress_line, read_lines, read_metrics
from tiny_audio.run.rejects import REJECTS
from tiny_audio.training.driver import HEALTH_TIMEOUT, START_TIMEOUT, _ray_train_timeouts, resolve, train
from tiny_audio.training.zero import Engine

pytestmark = pytest.mark.usefixtures("local_ray")


def config_of(shards, runs_dir, name, **changes) -> TrainConfig:
    values = {
        "num_steps": 4,
        "num_workers": 1,
        "use_gpu": False,
        "zero_stage": 0,
        "eval_every": 100,
        "checkpoint_every": 2,
        "log_every": 1,
        "seed": 1,
        "max_failures": 0,
        "model": ModelConfig(audio_model_id=ENCODER, text_model_id=DECODER, dtype="float32", max_new_tokens=4),
        "data": DataConfig(
            train=f"{shards}/train/*.parquet",
            dev=f"{shards}/dev/*.parquet",
            max_duration_s=8.0,
            batch_rows=6,
            steps_per_window=2,
            micro_batch_s=16.0,
            silence_share=0.1,
        ),
        "optimizer": OptimizerConfig(learning_rate=1e-4, warmup_steps=1, max_grad_norm=0.5),
    }
    return TrainConfig(name=name, runs_dir=str(runs_dir), **{**values, **changes})


def losses(config) -> list[float]:
    return [line["loss"] for line in read_metrics(config.run_dir) if "loss" in line]


def scores(config) -> list[float]:
    return [line["val_loss"] for line in read_metrics(config.run_dir) if "val_loss" in line]


@pytest.fixture(scope="module")
def plain(local_ray, shards, tmp_path_factory):
    """Trains the run that others are compared with: one worker, no ZeRO."""
    config = config_of(shards, tmp_path_factory.mktemp("runs"), "plain")
    train(config)
    return config


@pytest.mark.parametrize(
    ("num_workers", "zero_stage"),
    [pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow), (2, 2)],
)
def test_the_losses_are_the_same_on_any_workers_at_any_stage(plain, shards, tmp_path, num_workers, zero_stage):
    config = config_of(shards, tmp_path, "other", num_workers=num_workers, zero_stage=zero_stage)
    train(config)
    assert losses(config) == pytest.approx(losses(plain), rel=1e-5)
    assert scores(config) == pytest.approx(scores(plain), rel=1e-5)
    norms = [[line["grad_norm"] for line in read_metrics(c.run_dir) if "loss" in line] for c in (config, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    for name in ("projector.safetensors", "optimizer.safetensors"):  # whole tensors by name, however they were sharded
        ours, theirs = (load_file(latest_checkpoint(c.run_dir) / name) for c in (config, plain))
        assert set(ours) == set(theirs)
        for key in theirs:  # a step moves a weight by up to 1e-4
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=5e-5)


def test_a_run_leaves_its_model_its_config_and_its_counts(plain, shards):
    folder = plain.run_dir
    assert len(losses(plain)) == 4
    assert scores(plain)[-1] < scores(plain)[0]
    training = json.loads((folder / "training.json").read_text())
    assert training["step"] == 4
    assert training["rejects"] == {shards.name: {"empty": 1, "truncated": 1}}  # the source is the dataset
    assert training["num_rows"] + 2 == 4 * plain.data.batch_rows
    assert (folder / "config.yaml").is_file()
    assert [line["step"] for line in read_metrics(folder) if line.get("save_stall_s", 0) > 0] == [3]  # the next line has it
    assert training["end"] == "all 4 steps are done"
    assert training["exported_step"] == training["best"]["step"] == 4
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    exported = load_file(folder / "model" / "model.safetensors")
    checkpoint = load_file(latest_checkpoint(folder) / "projector.safetensors")
    assert all(torch.equal(exported[f"projector.{name}"], weight) for name, weight in checkpoint.items())


def test_a_checkpoint_holds_the_moments_of_the_projector_alone(plain):
    trained = ASRModel.from_pretrained(plain.run_dir / "model")
    moments = load_file(latest_checkpoint(plain.run_dir) / "optimizer.safetensors")
    names = {name for name, _ in trained.projector.named_parameters()}
    assert set(moments) == {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in names}
    assert sum(value.numel() for value in moments.values()) == 2 * sum(w.numel() for w in trained.projector.parameters())


@pytest.mark.slow  # the resumed run is compared at ZeRO 3 too; test_feed.py has cached frames
@pytest.mark.parametrize(
    "changes", [{"cache_features_gib": 1.0}, {"num_workers": 2, "zero_stage": 3}], ids=["cached frames", "ZeRO 3"]
)
def test_the_losses_are_the_same_with_cached_frames_and_at_zero_stage_3(two_epochs, shards, tmp_path, changes):
    config = config_of(shards, tmp_path, "other", num_steps=8, **changes)
    config.model.encoder_window = "trimmed"
    train(config)
    assert losses(config) == pytest.approx(losses(two_epochs), rel=1e-5)
    assert scores(config) == pytest.approx(scores(two_epochs), rel=1e-5)


def test_the_engine_leaves_the_backbones_as_they_were(one_worker, model):
    """Real steps, run in this process, leave every frozen weight bit for bit as it was loaded."""
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    engine = Engine(model, model.trained_groups(), OptimizerConfig(learning_rate=1e-2, weight_decay=0.1), stage=2)
    num_optimized = sum(weight.numel() for group in engine.adamw.param_groups for weight in group["params"])
    num_projector = sum(weight.numel() for weight in model.projector.parameters())
    assert num_projector <= num_optimized < 1.01 * num_projector
    for _ in range(2):
        engine.backward(engine(pack([Clip("a", tone(1.0), "the old baker")], model.packing())).loss_sum, last=True)
        engine.step([1e-2])
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith("projector.")}
    model.projector.load_state_dict({n.removeprefix("projector."): w for n, w in before.items() if n in changed})


def keep_until(config, step: int) -> None:
    """Removes what a run wrote after the checkpoint of a step, as if it had been killed then."""
    for folder in (config.run_dir / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    metrics = config.run_dir / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= step]
    metrics.write_text("\n".join(lines) + "\n")
    assert load_progress(latest_checkpoint(config.run_dir)).step == step


def damage_newest(config, step: int) -> Path:
    """Flips a bit in a run's newest checkpoint, that of a step; returns its folder."""
    newest = latest_checkpoint(config.run_dir)
    assert newest == checkpoint_folder(config.run_dir, step)
    data = bytearray((newest / "projector.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "projector.safetensors").write_bytes(data)
    return newest


def ledger_rows(config) -> list[tuple]:
    return sorted(tuple(row.values()) for row in pq.read_table(config.run_dir / LEDGER).to_pylist())


@pytest.mark.parametrize(
    "starts",
    [((2, 2, 3), (4, 1, 1)), pytest.param(((2, 3, 3), (4, 1, 1), (6, 2, 2)), marks=pytest.mark.slow)],
    ids=["1-2-1", "1-3-1-2"],
)
def test_a_run_resumes_with_other_workers_at_another_stage(two_epochs, shards, tmp_path, capsys, starts):
    """One worker begins the run without ZeRO; at each start others take it on, which may shard all weights.

    At the first, the newest checkpoint is damaged: the driver, the data and all workers must choose the one before.
    """
    shutil.copytree(two_epochs.run_dir, tmp_path / "plain")
    begun = config_of(shards, tmp_path, "plain")
    keep_until(begun, 4)
    damaged = damage_newest(begun, 4)
    for number, (step, num_workers, zero_stage) in enumerate(starts):
        changes = {"num_steps": 8, "keep_checkpoints": 4, "num_workers": num_workers, "zero_stage": zero_stage}
        config = config_of(shards, tmp_path, "plain", **changes)
        config.model.encoder_window = "trimmed"
        if number:
            keep_until(config, step)
        training = train(config)
        assert losses(config) == pytest.approx(losses(two_epochs), rel=1e-5)
        assert scores(config) == pytest.approx(scores(two_epochs), rel=1e-5)
        assert training["step"] == training["exported_step"] == 8
        counts = [json.loads((c.run_dir / "training.json").read_text())["rejects"] for c in (config, two_epochs)]
        assert counts[0] == counts[1]
    trained = [line["num_workers"] for line in read_metrics(config.run_dir) if "loss" in line]
    assert [trained[step] for step, _, _ in starts] == [num_workers for _, num_workers, _ in starts]
    steps = [line["step"] for line in read_lines(config.run_dir) if "loss" in line]
    assert [steps.count(step) for step in (2, 3)] == [1, 2]  # what the damaged checkpoint held ran again
    assert damaged.name in {path.name for path in damaged.parent.glob("step-*")}  # and is saved again
    said = capsys.readouterr().err.splitlines()
    (passed_over,) = [line for line in said if str(damaged) in line]
    assert "this checkpoint is passed over, and step-00000002 taken" in passed_over
    warnings = [line for line in said if "goes on with other settings" in line]
    assert len(warnings) == len(starts)
    assert f"num_workers: 1 -> {starts[0][1]}, zero_stage: 0 -> 3" in warnings[0]
    assert ledger_rows(config) == ledger_rows(two_epochs)
    assert [(epoch.num_rows, epoch.num_missing, epoch.num_twice) for epoch in audit(config)] == [(26, 0, 0)]
    ours, theirs = (load_file(latest_checkpoint(c.run_dir) / "optimizer.safetensors") for c in (config, two_epochs))
    for key, moment in theirs.items():
        torch.testing.assert_close(ours[key], moment, rtol=1e-3, atol=1e-3 * float(moment.abs().mean()))


@pytest.mark.slow  # tests/training/test_watchdog.py has a start that learns of it
def test_a_start_whose_run_was_taken_over_writes_no_more(shards, tmp_path):
    """Another cluster may take a run over, or new workers after the loss of a head node."""
    config = config_of(shards, tmp_path, "taken", num_steps=200, max_failures=3)
    when_taken = {}

    def files() -> list[Path]:
        return sorted(path for path in config.run_dir.rglob("*") if path.parts[-2] in ("checkpoints", LEDGER, REJECTS))

    def take_over():
        while len(losses(config)) < 4:
            time.sleep(0.02)
        claim_run(config.run_dir, "another start")
        when_taken["num_losses"] = len(losses(config))
        time.sleep(0.5)  # lets a write end that was allowed before
        when_taken["files"] = files()

    other = threading.Thread(target=take_over, daemon=True)
    other.start()
    with pytest.raises(ConfigError, match="was started again meanwhile"):
        train(config)
    other.join(5)
    assert len(losses(config)) <= when_taken["num_losses"] + 1
    assert files() == when_taken["files"]
    assert not (config.run_dir / "training.json").exists()


def test_a_run_checks_its_plan_again_once_its_nodes_are_up(shards, tmp_path):
    """Until then another start of the same name but another plan may have written to its folder."""
    config = config_of(shards, tmp_path, "two-plans")

    def other_start():
        other = Progress(step=2, plan=resolve(replace(config, seed=5)).identity)
        save_checkpoint(checkpoint_folder(config.run_dir, 2), {}, {}, state_bytes(other))
        claim_run(config.run_dir, "the other start")

    with pytest.raises(ConfigError, match="was started with seed=5, now it is 1") as error:
        train(config, other_start)
    assert str(error.value).count(str(config.run_dir)) == 1
    assert not losses(config)
    require_claim(config.run_dir, "the other start")  # the other start may go on


@pytest.mark.slow  # tests/run/test_checkpoint.py holds what a checkpoint that cannot be written says
def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(shards, tmp_path):
    """A thread writes it, so the workers must learn of the error, agree to stop, and not be started again."""
    config = config_of(shards, tmp_path, "full", num_workers=2, checkpoint_every=2, num_steps=40, max_failures=3)
    config.run_dir.mkdir()
    (config.run_dir / "checkpoints").write_text("in the way")
    with pytest.raises(ConfigError, match=r"no checkpoint written to .*step-00000002 \(.*\): it takes \d+\.\d MB, and") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert 2 < len(losses(config)) < 40


def test_bf16_backbones_train_like_float32_ones(plain, shards, tmp_path):
    config = config_of(shards, tmp_path, "bf16", zero_stage=2)
    config.model.dtype = "bfloat16"
    train(config)
    assert losses(config) == pytest.approx(losses(plain), rel=0.02)


def test_ray_train_waits_for_gpu_nodes_to_boot_and_not_beyond_the_run(shards, tmp_path):
    """Ray Train's own default is to wait 60 s for workers, give up and start over."""
    names = (START_TIMEOUT, HEALTH_TIMEOUT)
    before = [os.environ.get(name) for name in names]
    with _ray_train_timeouts(config_of(shards, tmp_path, "run", watchdog_timeout_s=700.0)):
        assert float(os.environ[START_TIMEOUT]) >= 600
        assert float(os.environ[HEALTH_TIMEOUT]) > 700
    assert [os.environ.get(name) for name in names] == before


def test_a_cluster_without_a_place_for_decoding_is_refused(shards, tmp_path):
    config = config_of(shards, tmp_path, "nowhere")
    config.data.decode_label = "nowhere"
    with pytest.raises(ConfigError, match=r"no node has the label ray-subcluster=nowhere and a CPU, .*; start one .*, or leave"):
        train(config)
    assert not config.run_dir.exists()


def test_a_run_under_another_plan_is_refused(plain, shards):
    changed = config_of(shards, plain.run_dir.parent, "plain", seed=4)
    with pytest.raises(ConfigError, match="was started with seed=1, now it is 4"):
        train(changed)


def test_the_progress_line_says_what_matters():
    values = {"step": 20, "loss": 0.5, "learning_rate": 1e-3, "audio_s_per_s": 33.3, "data_wait_share": 0.02, "num_rejected": 3}
    line = progress_line(values, 40, 75)
    for part in ("20", "50%", "loss 0.5000", "lr 1.0e-03", "33 s of audio/s", "2% waiting for data", "3 rejected", "1:15 left"):
        assert part in line
    assert progress_line({"step": 20, "val_loss": 0.5, "val_wer": 0.25}, 40, 0).endswith("validation loss 0.500  WER 25.0%")
    assert progress_line({"step": 20, "val_loss": 0.5}, 40, 0).endswith("validation loss 0.500")


@pytest.mark.slow  # tests/run/test_checkpoint.py has when a run ends, and which checkpoint is its best
def test_a_run_that_gets_worse_ends_early_exports_its_best_and_stays_ended(shards, tmp_path):
    """Two workers must agree to end it, and a second start must know that it has ended."""
    changes = {"num_steps": 12, "num_workers": 2, "zero_stage": 2, "eval_every": 1, "checkpoint_every": 100, "seed": 3}
    config = config_of(shards, tmp_path, "early", **changes, keep_checkpoints=1, early_stopping_patience=2)
    config.data.max_wer_rows = 0
    config.optimizer = OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_steps=0)
    training = train(config)
    logged = {line["step"]: line["val_loss"] for line in read_metrics(config.run_dir) if line.get("val_loss") and line["step"]}
    best = min(logged, key=logged.get)
    assert training["exported_step"] == training["best"]["step"] == best == training["step"] - 2
    assert training["step"] < 12
    assert training["end"] == f"no better val_loss in 2 validations since step {best}"
    checkpoints = sorted(path.name for path in (config.run_dir / "checkpoints").glob("step-*"))
    assert checkpoints == [f"step-{best:08d}", f"step-{best + 2:08d}"]  # the best, and the last to resume from
    exported = load_file(config.run_dir / "model" / "model.safetensors")
    checkpoint = load_file(config.run_dir / "checkpoints" / checkpoints[0] / "projector.safetensors")
    assert all(torch.equal(exported[f"projector.{name}"], weight) for name, weight in checkpoint.items())
    assert not any("val_wer" in line for line in read_metrics(config.run_dir))
    lines = (config.run_dir / "metrics.jsonl").read_text()
    config.export = "last"
    again = train(config)
    assert again == training | {"exported_step": best + 2}
    assert (config.run_dir / "metrics.jsonl").read_text() == lines
