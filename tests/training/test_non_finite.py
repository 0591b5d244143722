"""Clips whose loss is not finite are left out, counted and named; a run in which most clips fail is ended.

A decoder with NaN in one token's embedding stands in for any cause: all rows whose label has that token fail.
"""

import json
import math
import shutil
import weakref
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import DECODER, ENCODER, ROOT, tone, write_shard
from tests.training.test_train import config_of, losses
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError, DataConfig, OptimizerConfig
from tiny_audio.data.batch import WorkerBatch
from tiny_audio.data.dev_clips import load_dev_clips
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.lab.synthetic.dataset import encode_audio
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.decoder import load_tokenizer
from tiny_audio.model.non_finite import ClipCheck
from tiny_audio.model.packing import pack
from tiny_audio.run.audit import EpochAudit, audit
from tiny_audio.run.ledger import LEDGER
from tiny_audio.run.rejects import SkippedRow
from tiny_audio.training.driver import train
from tiny_audio.training.interval import Interval
from tiny_audio.training.validation import Validation

ONE_LABEL = SimpleNamespace(bounds=torch.tensor([0, 1]))
LABEL, POISONED = "the old baker", "the old zebra"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> str:
    """Writes the embedded decoder with NaN in the embedding of a token that only "zebra" has, but none in its output head."""
    folder = tmp_path_factory.mktemp("poisoned") / "decoder"
    shutil.copytree(ROOT / DECODER, folder)
    tokenizer = load_tokenizer(str(folder))
    (token, *_) = set(tokenizer(POISONED)["input_ids"]) - set(tokenizer(LABEL)["input_ids"])
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Writes a folder with train/ (24 rows, three of them poisoned) and dev/ (2 rows)."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [
        (f"row-{i:03d}", encode_audio(tone(0.5 + i / 16, 200 + 20 * i), "wav"), POISONED if i in (3, 11, 20) else LABEL)
        for i in range(26)
    ]
    write_shard(folder / "train/train-0.parquet", rows[:24])
    write_shard(folder / "dev/dev-0.parquet", rows[24:])
    return folder


def gradients(model: ASRModel, batch) -> tuple[torch.Tensor, list[bool], list[torch.Tensor]]:
    model.zero_grad()
    output = model(batch)
    output.loss_sum.backward()
    grads = [weight.grad.clone() for weight in model.projector.parameters()]
    return torch.stack([output.clips.loss_sum, output.clips.num_label_tokens]), output.clips.finite.tolist(), grads


@pytest.mark.parametrize("where", ["label", "frames", "gradient"])
def test_a_clip_that_is_not_finite_changes_nothing_for_its_neighbours(poisoned, where):
    torch.manual_seed(0)
    model = ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=poisoned, dtype="float32"))
    text = POISONED if where == "label" else LABEL
    clips = [Clip("a", tone(0.8), LABEL), Clip("b", tone(1.0, 300), text), Clip("c", tone(1.2, 500), LABEL)]
    packing = model.packing()
    batch, hooks = pack(clips, packing), []
    if where == "frames":
        alone = pack([clips[1]], packing)
        frames = model.encode_batch(alone)
        batch = pack(clips, packing, {1: torch.cat([frames[:-1], frames[-1:] * torch.nan])})
    if where == "gradient":  # one audio token's gradient is infinite, as when a backward pass overflows

        def overflow(gradient):
            return gradient.index_fill(0, batch.audio[batch.first_tokens[1:2]], torch.inf)

        norm = model.decoder.model.layers[0].input_layernorm
        hooks = [norm.register_forward_pre_hook(lambda _, inputs: inputs[0].register_hook(overflow) and None)]
    totals, finite, grads = gradients(model, batch)
    for hook in hooks:
        hook.remove()
    assert dict(zip([clip.id for clip in batch.rows], finite, strict=True)) == {"a": True, "b": False, "c": True}
    expected_totals, _, expected_grads = gradients(model, pack([clips[0], clips[2]], packing))
    torch.testing.assert_close(totals, expected_totals)
    assert all(grad.any() for grad in expected_grads)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_finite_are_skipped_counted_and_named(local_ray, poisoned, rows, tmp_path):
    config = config_of(rows, tmp_path, "run", num_steps=5, num_workers=2, zero_stage=2)
    config.model.text_model_id = poisoned
    training = train(config)
    assert len(losses(config)) == 5
    assert all(loss > 0 for loss in losses(config))
    rejects = pq.read_table(config.run_dir / "rejects.parquet").to_pylist()
    first_epoch = sorted(row["id"] for row in rejects if row["epoch"] == 0)
    assert (first_epoch, {row["reason"] for row in rejects}) == (["row-003", "row-011", "row-020"], {"loss_not_finite"})
    assert training["rejects"] == {rows.name: {"loss_not_finite": len(rejects)}}
    assert training["num_rows"] == pq.read_table(config.run_dir / LEDGER).num_rows
    assert audit(config) == [EpochAudit(0, 24, 21, 3, 0, 0)]


@pytest.mark.slow  # below is what an interval says of it, and test_bad_data.py has a run that ends at once on all workers
@pytest.mark.parametrize(
    ("learning_rate", "max_loss_rise", "message"),
    [
        (1e30, 3.0, r"not a finite number.* step \d+.* on rank \d: rows row-\d{3}"),
        (3.0, 0.1, r"the loss has risen to \d+.* at step \d+, .* rank \d's rows of the last step: row-\d{3}"),
    ],
    ids=["nan", "explodes"],
)
def test_a_run_that_diverges_ends_at_once_and_says_where(local_ray, rows, tmp_path, learning_rate, max_loss_rise, message):
    """It is not started `max_failures` more times, since each start would diverge in the same way."""
    changes = {"num_steps": 20, "num_workers": 2, "zero_stage": 2, "max_failures": 3, "max_loss_rise": max_loss_rise}
    config = config_of(rows, tmp_path, "diverges", **changes)
    config.optimizer = OptimizerConfig(learning_rate=learning_rate, schedule="constant", warmup_steps=0)
    with pytest.raises(ConfigError, match=f"{message}.*; look at .*learning_rate"):
        train(config)


def test_a_loss_that_rises_far_is_a_fault_and_one_that_was_never_lower_is_not(one_worker):
    interval = Interval(torch.zeros(()), torch.zeros(()))
    batch = WorkerBatch(7, 0, 0, 1, 1.0, [Clip("row-1", tone(0.1), LABEL)])
    check = ClipCheck(torch.tensor([0]), 1, torch.tensor([5]), ONE_LABEL)
    interval.add_clips(batch, batch.clips, check)
    interval.loss_sum += 7.5
    sums = interval.sums(stops=False)
    assert sums.mean_loss == 7.5
    rise = "the loss has risen to 7.50 nats per token at step 8, more than max_loss_rise=3 above its lowest, 4.00"
    assert interval.fault(8, sums, [], 4.0, 3.0).startswith(f"{rise}; rank 0's rows of the last step: row-1; look at")
    assert interval.fault(8, sums, [], 5.0, 3.0) == ""
    skipped = [SkippedRow(0, 7, "row-1", rank=1)]
    said = (
        "the loss or its gradient is not a finite number for 1 of 1 clips up to step 8; first at step 8 on rank 1: rows row-1; "
    )
    assert interval.fault(8, sums._replace(num_skipped=1.0), skipped, 5.0, 3.0).startswith(f"{said}look at these rows, or try")
    without_tokens = Interval(torch.zeros(()), torch.zeros(()), micro_batches=interval.micro_batches)
    assert math.isnan(without_tokens.sums(False).mean_loss)  # NaN, so that it sets no lowest loss


def test_an_interval_keeps_no_samples(one_worker):
    """Samples are views of the object store, and would fill it until the next logged step."""
    interval = Interval(torch.zeros(()), torch.zeros(()))
    clip = Clip("row-1", tone(0.1), LABEL)
    batch = WorkerBatch(7, 0, 0, 1, 1.0, [clip])
    check = ClipCheck(torch.tensor([0]), 1, torch.tensor([5]), ONE_LABEL)
    interval.add_clips(batch, batch.clips, check)
    samples = weakref.ref(clip.pcm)
    del batch, clip
    assert samples() is None


def test_a_validation_loss_that_is_not_finite_names_its_rows(one_worker, poisoned, rows):
    model = ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=poisoned, dtype="float32"))
    clips = load_dev_clips(DataConfig(dev=f"{rows}/train/*.parquet"))
    validation = Validation(clips, 0, model, Transcriber(model).texts, 1, 16.0, False, lambda ids: None)
    with pytest.raises(ConfigError, match="validation loss is not a finite number for rows row-003, row-011, row-020; leave"):
        validation()
