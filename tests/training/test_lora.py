"""A second stage: a run that begins with another's projector, and trains an adapter of the decoder beside it."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import tone
from tests.training.test_train import config_of, keep_until, ledger_rows, losses, scores
from tiny_audio.config import ConfigError, LoraConfig
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.ctc_head import CTC_HEAD_FILE, new_ctc_head, save_ctc_head
from tiny_audio.run.audit import EpochAudit, audit
from tiny_audio.run.metrics import read_lines
from tiny_audio.training.driver import resolve, train


def second_stage(two_epochs, shards, tmp_path, **changes):
    config = config_of(shards, tmp_path, "second", **{"init_from": str(two_epochs.run_dir), **changes})
    config.model.encoder_window = "trimmed"
    config.lora = LoraConfig(rank=2, alpha=4.0, learning_rate=1e-3)
    return config


@pytest.fixture(scope="module")
def begun(two_epochs, tmp_path_factory):
    """The model of a run that has a CTC head."""
    folder = shutil.copytree(two_epochs.run_dir / "model", tmp_path_factory.mktemp("begun") / "model")
    save_ctc_head(new_ctc_head(192), folder)
    return folder


@pytest.fixture(scope="module")
def straight(two_epochs, begun, shards, tmp_path_factory):
    """A second stage that ran without a break."""
    alone = {"ctc_weight": 0.3, "ctc_alone_steps": 3}  # the adapter has no gradient in the first steps
    changes = {"zero_stage": 2, "num_steps": 5, "keep_checkpoints": 4, "init_from": str(begun), **alone}
    config = second_stage(two_epochs, shards, tmp_path_factory.mktemp("straight"), **changes)
    train(config)
    return config


def test_a_second_stage_begins_with_a_runs_projector(two_epochs, begun, straight):
    assert scores(straight)[0] == pytest.approx(scores(two_epochs)[-1], rel=1e-5)
    assert "and LoRA, " in next(line["note"] for line in read_lines(straight.run_dir) if "note" in line)
    checkpoint = load_file(straight.run_dir / "checkpoints/step-00000005/projector.safetensors")
    adapter = load_file(straight.run_dir / "model/adapter/adapter_model.safetensors")
    assert {name for name in checkpoint if name.startswith("lora.")} == {
        f"lora.{name.removeprefix('base_model.model.').removesuffix('.weight')}" for name in adapter
    }
    assert all(weight.any() for weight in adapter.values())
    assert "LoRA | rank 2 on q_proj" in (straight.run_dir / "model/README.md").read_text()
    assert Transcriber.load(str(straight.run_dir / "model")).texts([tone(1.0)])
    assert (straight.run_dir / f"model/{CTC_HEAD_FILE}").read_bytes() == (begun / CTC_HEAD_FILE).read_bytes()


@pytest.mark.slow
def test_a_second_stage_resumes_at_another_stage(straight, tmp_path):
    config = replace(straight, runs_dir=str(tmp_path), zero_stage=3, num_workers=2, init_from=str(tmp_path / "gone"))
    shutil.copytree(straight.run_dir, config.run_dir)
    keep_until(config, 2)
    train(config)
    assert losses(config) == pytest.approx(losses(straight), rel=1e-5)
    assert scores(config) == pytest.approx(scores(straight), rel=1e-5)
    assert sorted(ledger_rows(config)) == sorted(ledger_rows(straight))
    assert audit(config) == [EpochAudit(0, 26, 24, 2, 0, 0)]
    adapter, again = (load_file(run.run_dir / "model/adapter/adapter_model.safetensors") for run in (straight, config))
    for name, weight in again.items():
        torch.testing.assert_close(weight, adapter[name], rtol=1e-3, atol=5e-5)


def test_a_run_that_is_not_there_is_one_line(two_epochs, shards, tmp_path):
    config = second_stage(two_epochs, shards, tmp_path)
    config.init_from = "none"
    with pytest.raises(ConfigError, match=r"^init_from=none: no run with a model/, and no saved model, is there$"):
        resolve(config)
