import pytest
import torch
from torch import nn
from torch.nn.functional import ScalingType

from tests.conftest import DECODER, ENCODER, tone
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError
from tiny_audio.model import fp8
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.fp8 import FLOAT8, FrozenLinear8, freeze_to_fp8, quantize_rows, require_fp8
from tiny_audio.model.packing import pack


@pytest.fixture
def scaled_mm(monkeypatch):
    """The product that GPUs have and CPUs lack, with its demands on the layout of its operands."""

    def product(a, b, scale_a, recipe_a, scale_b, recipe_b, bias, output_dtype, use_fast_accum):
        assert recipe_a == recipe_b == ScalingType.RowWise
        assert a.dtype == b.dtype == FLOAT8
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert scale_a.shape == (a.shape[0], 1)
        assert scale_b.shape == (1, b.shape[1])
        out = (a.float() * scale_a) @ (b.float() * scale_b)
        return (out if bias is None else out + bias.float()).to(output_dtype)

    monkeypatch.setattr(fp8, "scaled_mm", product)


def test_rows_come_back_within_half_a_step_of_float8():
    x = torch.randn(50, 64) * torch.logspace(-6, 3, 50)[:, None]
    rows, scale = quantize_rows(x)
    largest = x.abs().amax(dim=1, keepdim=True)
    assert ((rows.float() * scale - x).abs() <= x.abs() * 2**-4 + largest * 2**-9 / 448).all()  # 3 bits of mantissa
    assert quantize_rows(torch.zeros(2, 8))[0].float().abs().max() == 0


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_in_fp8_gives_about_the_outputs_and_gradients_of_the_layer(scaled_mm, bias):
    torch.manual_seed(0)
    layer = nn.Linear(64, 96, bias=bias).requires_grad_(False)
    x, weight = torch.randn(40, 64, requires_grad=True), torch.randn(40, 96)
    results = []
    for module in (layer, FrozenLinear8(layer, both_ways=True)):
        x.grad = None
        output = module(x)
        (output * weight).sum().backward()
        results.append((output.detach(), x.grad))
    for plain, quantized in zip(*results, strict=True):
        assert (plain - quantized).norm() / plain.norm() < 0.05
        assert not torch.equal(plain, quantized)


def test_a_model_in_fp8_has_about_the_loss_and_gradient_of_the_model(scaled_mm):
    """Both backbones; the encoder, through which nothing goes back, keeps each weight once."""
    torch.manual_seed(0)
    model = ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, encoder_window="trimmed"))
    batch = pack([Clip("a", tone(1.0), "the old baker"), Clip("b", tone(2.5, 300), "seven lemons")], model.packing())
    results = []
    for _ in range(2):
        model.zero_grad()
        output = model(batch)
        output.loss.backward()
        results.append((output.loss.item(), torch.cat([w.grad.flatten() for w in model.projector.parameters()])))
        if len(results) == 1:
            freeze_to_fp8(model)
    (loss, gradient), (fp8_loss, fp8_gradient) = results
    assert fp8_loss == pytest.approx(loss, rel=0.05)
    assert fp8_loss != loss
    assert torch.cosine_similarity(gradient, fp8_gradient, dim=0) > 0.8
    assert model.encoder.layers[0].fc1.turned.numel() == 0
    assert model.decoder.model.layers[0].mlp.up_proj.turned.numel() > 0
    assert isinstance(model.projector.linear_1, nn.Linear)


def test_without_a_gpu_that_can_it_is_refused(monkeypatch):
    monkeypatch.setattr(fp8.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="fp8=true needs a GPU"):
        require_fp8()
