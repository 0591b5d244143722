"""Puts frozen linear layers in FP8: half the bytes and up to twice the rate of bf16 on Hopper GPUs and newer.

Activations are scaled row by row to float8's range as they come, and so are gradients on the way back. Weights are scaled
once, row by row, for each of the two products that they take part in. The tensor cores sum the products in their fast mode,
a little less exactly than float32. (Micikevicius et al. 2022, "FP8 formats for deep learning"; the row-wise scales are those
of PyTorch's own float8 training recipes.) The trained projector is never in FP8.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import ScalingType, scaled_mm

from tiny_audio.config import require

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
MIN_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds (N, K) to float8; returns it and the float32 scales, (N, 1), that undo it."""
    largest = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12)
    return (x.float() * (LARGEST / largest)).to(FLOAT8), largest / LARGEST


def _product(x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiplies x (N, K) by a weight (O, K) transposed: (N, O) in x's type."""
    rows, scale = quantize_rows(x)
    by_row = (scale, ScalingType.RowWise, weight_scale.t(), ScalingType.RowWise)
    return scaled_mm(rows, weight.t(), *by_row, bias=bias, output_dtype=x.dtype, use_fast_accum=True)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, weight_scale, turned, turned_scale, bias):
        ctx.save_for_backward(turned, turned_scale)
        return _product(x, weight, weight_scale, bias)

    @staticmethod
    def backward(ctx, gradient):
        return _product(gradient, *ctx.saved_tensors, None), None, None, None, None, None


def frozen_product(x, weight, weight_scale, turned, turned_scale, bias):
    """Multiplies x (N, K) by a frozen weight (O, K) transposed; `turned` (K, O) takes the gradient back."""
    return _FrozenProduct.apply(x, weight, weight_scale, turned, turned_scale, bias)


class FrozenLinear8(nn.Module):
    """Stands in for a frozen `nn.Linear`; its weight is kept twice, for the way forward and, if `both_ways`, back."""

    def __init__(self, linear: nn.Linear, both_ways: bool):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight = linear.weight.detach()
        self.weight, self.weight_scale = (nn.Buffer(x, persistent=False) for x in quantize_rows(weight))
        turned = quantize_rows(weight.t().contiguous()) if both_ways else (weight.new_empty(0), weight.new_empty(0))
        self.turned, self.turned_scale = (nn.Buffer(x, persistent=False) for x in turned)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        product = frozen_product(rows, self.weight, self.weight_scale, self.turned, self.turned_scale, self.bias)
        return product.unflatten(0, x.shape[:-1])


def require_fp8() -> None:
    """Raises ConfigError where this machine's GPU, or its lack of one, cannot compute in FP8."""
    able = torch.cuda.is_available() and torch.cuda.get_device_capability() >= MIN_CAPABILITY
    require(able, "fp8=true needs a GPU of the Ada, Hopper or a newer generation; set fp8=false")


def freeze_to_fp8(model: nn.Module, trains: bool = True) -> None:
    """Puts the linear layers of an `ASRModel`'s backbones in FP8, in place: not their embeddings, convolutions or output head.

    Where it `trains`, gradients go through the decoder, on their way to the projector; they never go through the encoder.
    """
    # Torch 2.11's own tracing fails at the second such function in a graph. To say so imports its compiler, which takes a second.
    torch.compiler.allow_in_graph(frozen_product)
    for layers, both_ways in ((model.encoder.layers, False), (model.decoder.model.layers, trains)):
        for module in list(layers.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, FrozenLinear8(child, both_ways))
