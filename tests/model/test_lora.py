"""LoRA on the decoder: gradients are transformers' own, peft reads what is written, and a loaded model has it merged."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from tests.conftest import DECODER, TINY_WHISPER, tone
from tests.model.decoder_folders import write_checkpoint
from tests.model.test_asr import plain_loss
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError, LoraConfig, OptimizerConfig
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.lab.random_backbones import write_encoder
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.decoder import load_decoder
from tiny_audio.model.lora import (
    Adapter,
    adapter_weights,
    attach_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    split_adapter,
)
from tiny_audio.model.packing import pack
from tiny_audio.model.saved import load_trained, save_model
from tiny_audio.model.whole_layers import call_whole_layers, whole_layers
from tiny_audio.training.zero import Engine

CLIPS = [Clip("a", tone(1.0), "the old baker"), Clip("b", tone(2.5, 300), "seven lemons"), Clip("c", tone(0.3), "")]
LORA = LoraConfig(rank=4, alpha=6.0, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    write_encoder(folder / "encoder", TINY_WHISPER)
    return {"encoder": folder / "encoder", **{name: write_checkpoint(name, folder / name) for name in ("SmolLM2", "Qwen2.5")}}


def build(folders, name="SmolLM2", trained=True) -> ASRModel:
    """Builds a model with an adapter; `trained`: one that tells."""
    torch.manual_seed(0)
    model = ASRModel(ASRConfig(audio_model_id=str(folders["encoder"]), text_model_id=str(folders[name]), max_new_tokens=8))
    attach_adapter(model.decoder, LORA.rank, LORA.alpha, LORA.targets)
    if trained:
        for weight in adapter_weights(model.decoder).values():
            weight.data.normal_(std=0.1)
    return model


def loss_of(model) -> torch.Tensor:
    return model(pack(CLIPS, model.packing())).loss


def adapter_of(model) -> Adapter:
    return split_adapter(model.trained_weights(), LORA)[1]


def test_a_fresh_adapter_changes_nothing(folders):
    with_adapter = build(folders, trained=False)
    without = ASRModel(with_adapter.config)
    without.projector.load_state_dict(with_adapter.projector.state_dict())
    torch.testing.assert_close(
        with_adapter(pack(CLIPS, with_adapter.packing())).loss, without(pack(CLIPS, without.packing())).loss
    )


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen2.5"])
def test_packed_losses_and_gradients_are_transformers_own_on_each_clip_alone(folders, name):
    model = build(folders, name)
    weights = list(model.trained_weights().values())
    assert len(weights) == 3 + 3 * 7 * 2
    ours = model(pack(CLIPS, model.packing()))
    gradients = torch.autograd.grad(ours.loss_sum, weights)
    total = sum(plain_loss(model, clip)[0] for clip in CLIPS)
    torch.testing.assert_close(ours.loss_sum, total, rtol=1e-5, atol=0)
    for gradient, plain in zip(gradients, torch.autograd.grad(total, weights), strict=True):
        assert (gradient - plain).norm() <= 1e-5 * plain.norm()


@torch.no_grad()
@pytest.mark.parametrize("name", ["SmolLM2", "Qwen2.5"])
def test_peft_reads_it_and_computes_the_same(folders, name, tmp_path):
    model = build(folders, name)
    save_adapter(adapter_of(model), str(folders[name]), tmp_path)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[name]), tmp_path)
    ids = torch.tensor([[5, 60, 61, 62, 63, 5, 6]])
    logits = model.decoder(ids).logits
    torch.testing.assert_close(theirs(ids).logits, logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(AutoModelForCausalLM.from_pretrained(folders[name])(ids).logits, logits, atol=0.1)
    theirs.save_pretrained(tmp_path / "again")  # and what it writes is read here
    again = load_adapter(tmp_path / "again/adapter_config.json", tmp_path / "again/adapter_model.safetensors")
    assert (again.rank, again.alpha, sorted(again.targets)) == (LORA.rank, LORA.alpha, sorted(LORA.targets))
    assert {key: value.tolist() for key, value in again.weights.items()} == {
        key: value.tolist() for key, value in adapter_of(model).weights.items()
    }


@torch.no_grad()
def test_a_loaded_model_has_it_merged_and_is_saved_with_it(folders, tmp_path):
    model = build(folders)
    save_model(model.config, model.projector.state_dict(), adapter_of(model), tmp_path / "model")
    loaded = ASRModel.from_pretrained(tmp_path / "model")
    assert not adapter_weights(loaded.decoder)
    torch.testing.assert_close(loss_of(loaded), loss_of(model), rtol=1e-4, atol=0)
    pcm = [clip.pcm for clip in CLIPS]
    assert Transcriber(loaded).texts(pcm) == Transcriber(model).texts(pcm)
    assert AutoModel.from_pretrained(tmp_path / "model").adapter.rank == LORA.rank  # which looks for peft's files itself
    loaded.save_pretrained(tmp_path / "again")
    trained = {name: weight.tolist() for name, weight in model.trained_weights().items()}
    for name in ("model", "again"):
        assert {key: value.tolist() for key, value in load_trained(str(tmp_path / name)).items()} == trained
    assert json.loads((tmp_path / "model/config.json").read_text())["format_version"] == 2


def test_a_clip_that_is_not_finite_adds_nothing_to_its_gradients(folders):
    model = build(folders)
    packing = model.packing()
    weights = list(model.trained_weights().values())
    frames = model.encode_batch(pack([CLIPS[1]], packing))
    poisoned = {1: torch.cat([frames[:-1], frames[-1:] * torch.nan])}
    output = model(pack(CLIPS, packing, poisoned))
    gradients = torch.autograd.grad(output.loss_sum, weights)
    assert sorted(output.clips.finite.tolist()) == [False, True, True]
    expected = torch.autograd.grad(model(pack([CLIPS[0], CLIPS[2]], packing)).loss_sum, weights)
    for gradient, without in zip(gradients, expected, strict=True):
        assert without.norm() > 0
        assert (gradient - without).norm() <= 1e-4 * without.norm()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_it_trains_alike_at_every_stage_and_goes_on_at_another(one_worker, folders, stage):
    """Two steps at this stage and a third in a new engine without ZeRO, which takes over weights and moments."""
    rates, config = [1e-3, 1e-2], OptimizerConfig(weight_decay=0.1)

    def trained(model, stage, num_steps, moments=None, begun=0):
        if stage == 3:
            call_whole_layers(model)
        engine = Engine(model, model.trained_groups(), config, stage, whole_layers(model))
        if moments:
            engine.load_moments(moments, begun)
        for _ in range(num_steps):
            engine.backward(engine(pack(CLIPS, model.packing(grouped=False))).loss_sum, last=True)
            engine.step(rates)
        return engine.weights(), engine.moments()

    weights, moments = trained(build(folders), stage, 2)
    assert any(name.startswith("lora.") for name in weights)
    resumed = build(folders, trained=False)
    resumed.load_trained(weights, "the checkpoint")
    ours = trained(resumed, 0, 1, moments, begun=2)
    theirs = trained(build(folders), 0, 3)
    for part, expected in zip(ours, theirs, strict=True):
        assert set(part) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(part[name], value, rtol=1e-3, atol=1e-4)  # a step moves them by up to 1e-2


def test_what_cannot_be_is_one_line(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"lora\.rank trains the decoder: set lora\.learning_rate"):
        LoraConfig(rank=8)
    with pytest.raises(ConfigError, match=r"lora\.targets must be .*q_proj.*, not 'lm_head'"):
        LoraConfig(targets=["lm_head"])
    model = build(folders)
    with pytest.raises(ConfigError, match=r"runs/a: its trained weights are not those of this model; they hang on"):
        ASRModel(model.config).load_trained(model.trained_weights(), "runs/a")
    save_model(model.config, model.projector.state_dict(), adapter_of(model), tmp_path)
    with pytest.raises(ConfigError, match=r"not an adapter for this decoder"):
        merge_adapter(load_decoder(DECODER, torch.float32, "sdpa"), adapter_of(model))
    settings = tmp_path / "adapter/adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"use_dora": True}))
    with pytest.raises(ConfigError, match="only plain LoRA is computed here"):
        ASRModel.from_pretrained(tmp_path)
