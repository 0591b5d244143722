"""A second stage: a run that begins with another's projector, and trains an adapter of the decoder beside it."""

import shutil

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


def test_a_second_stage_begins_with_a_runs_projector_and_resumes_at_another_stage(two_epochs, shards, tmp_path):
    begun = shutil.copytree(two_epochs.run_dir / "model", tmp_path / "begun")
    save_ctc_head(new_ctc_head(192), begun)
    alone = {"ctc_weight": 0.3, "ctc_alone_steps": 3}  # the adapter has no gradient in the first steps
    changes = {"zero_stage": 2, "num_steps": 5, "keep_checkpoints": 4, "init_from": str(begun), **alone}
    config = second_stage(two_epochs, shards, tmp_path, **changes)
    train(config)
    straight = losses(config), scores(config), sorted(ledger_rows(config))
    assert scores(config)[0] == pytest.approx(scores(two_epochs)[-1], rel=1e-5)
    assert "and LoRA, " in next(line["note"] for line in read_lines(config.run_dir) if "note" in line)
    checkpoint = load_file(config.run_dir / "checkpoints/step-00000005/projector.safetensors")
    adapter = load_file(config.run_dir / "model/adapter/adapter_model.safetensors")
    assert {name for name in checkpoint if name.startswith("lora.")} == {
        f"lora.{name.removeprefix('base_model.model.').removesuffix('.weight')}" for name in adapter
    }
    assert all(weight.any() for weight in adapter.values())
    assert "LoRA | rank 2 on q_proj" in (config.run_dir / "model/README.md").read_text()
    assert Transcriber.load(str(config.run_dir / "model")).texts([tone(1.0)])
    assert (config.run_dir / f"model/{CTC_HEAD_FILE}").read_bytes() == (begun / CTC_HEAD_FILE).read_bytes()
    keep_until(config, 2)
    config.zero_stage, config.num_workers, config.init_from = 3, 2, str(tmp_path / "gone")
    train(config)
    assert losses(config) == pytest.approx(straight[0], rel=1e-5)
    assert scores(config) == pytest.approx(straight[1], rel=1e-5)
    assert sorted(ledger_rows(config)) == straight[2]
    assert audit(config) == [EpochAudit(0, 26, 24, 2, 0, 0)]
    again = load_file(config.run_dir / "model/adapter/adapter_model.safetensors")
    for name, weight in again.items():
        torch.testing.assert_close(weight, adapter[name], rtol=1e-3, atol=5e-5)


def test_a_run_that_is_not_there_is_one_line(two_epochs, shards, tmp_path):
    config = second_stage(two_epochs, shards, tmp_path)
    config.init_from = "none"
    with pytest.raises(ConfigError, match=r"^init_from=none: no run with a model/, and no saved model, is there$"):
        resolve(config)
