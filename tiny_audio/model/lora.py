"""LoRA on the frozen decoder: low-rank matrices beside its linear layers, the only part of it that trains (Hu et al. 2021).

On disk an adapter has peft's format, so that others' tools read it. A model that was loaded to transcribe has its adapter
merged into the decoder's weights, and computes as without one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.functional import linear

from tiny_audio.config import LoraConfig, require

# Of a saved model. In the model's own folder transformers, where it finds peft, would take the whole for an adapter.
ADAPTER_FOLDER = "adapter"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
PEFT_PREFIX = "base_model.model."
TRAINED_PREFIX = "lora."  # of an adapter's weights beside the projector's, as in checkpoints
UNKNOWN_OPTIONS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")  # of peft


class _LowRank(torch.autograd.Function):
    """Multiplies x (N, K) by a (r, K) and b (O, r) transposed; rows that are not finite add nothing to the gradients of a and b.

    Such rows are of clips that are left out of the loss, see `non_finite.py`, but infinity times zero would be NaN.
    """

    @staticmethod
    def forward(ctx, x, a, b):
        hidden = linear(x, a)
        ctx.save_for_backward(x, hidden, a, b)
        return linear(hidden, b)

    @staticmethod
    def backward(ctx, gradient):
        x, hidden, a, b = ctx.saved_tensors
        good = (gradient.isfinite().all(-1) & x.isfinite().all(-1))[:, None]
        kept, x, hidden = (torch.where(good, rows, 0) for rows in (gradient, x, hidden))
        inner = gradient @ b
        return inner @ a, torch.where(good, inner, 0).t() @ x, kept.t() @ hidden


def low_rank(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiplies x (N, K) by a (r, K) and b (O, r) transposed."""
    return _LowRank.apply(x, a, b)


class LoraLinear(nn.Module):
    """Stands in for a frozen linear layer, whose product it adds to that of two float32 matrices; `lora_B` begins with zeros."""

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.base_layer, self.scale = base, scale
        new = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **new))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **new))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # peft's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added = low_rank(x.flatten(0, -2), self.lora_A.to(x.dtype), self.lora_B.to(x.dtype))
        return self.base_layer(x) + self.scale * added.unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns the frozen layer, to whose weight the matrices' product is added."""
        weight = self.base_layer.weight
        weight.copy_(weight.float() + self.scale * (self.lora_B @ self.lora_A))
        return self.base_layer


@dataclass(frozen=True)
class Adapter:
    """Holds what an adapter's folder does: its settings, and its weights by the names of the decoder's layers."""

    rank: int
    alpha: float
    targets: list[str]
    weights: dict[str, torch.Tensor]  # "model.layers.0.self_attn.q_proj.lora_A" and so on


def attach_adapter(decoder: nn.Module, rank: int, alpha: float, targets: list[str]) -> None:
    """Puts fresh matrices beside the layers of the decoder that have a name among the `targets`.

    Raises:
        ConfigError: the decoder has no such layer.
    """
    found = [
        (parent, name) for parent in decoder.model.layers.modules() for name, _ in parent.named_children() if name in targets
    ]
    missing = sorted(set(targets) - {name for _, name in found})
    require(not missing, f"lora.targets: the decoder has no layer {', '.join(missing)}")
    torch.compiler.allow_in_graph(low_rank)  # as in fp8.py
    for parent, name in found:
        setattr(parent, name, LoraLinear(getattr(parent, name), rank, alpha / rank))


def adapter_weights(decoder: nn.Module) -> dict[str, nn.Parameter]:
    """Lists the matrices that train, by name; none where the decoder has no adapter."""
    layers = {name: layer for name, layer in decoder.named_modules() if isinstance(layer, LoraLinear)}
    return {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("lora_A", "lora_B")}


def merge_adapter(decoder: nn.Module, adapter: Adapter) -> Adapter:
    """Adds an adapter to the decoder's weights, and returns it.

    Raises:
        ConfigError: it is of another decoder.
    """
    attach_adapter(decoder, adapter.rank, adapter.alpha, adapter.targets)
    weights = adapter_weights(decoder)
    shapes = {name: weight.shape for name, weight in weights.items()}
    is_ours = shapes == {name: weight.shape for name, weight in adapter.weights.items()}
    require(is_ours, f"{ADAPTER_WEIGHTS}: not an adapter for this decoder; take the decoder that it was trained on")
    for name, weight in weights.items():
        weight.data.copy_(adapter.weights[name])
    for parent in list(decoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merged())
    return adapter


def split_adapter(weights: dict[str, torch.Tensor], lora: LoraConfig) -> tuple[dict[str, torch.Tensor], Adapter | None]:
    """Parts what a run trained, as a checkpoint has it, into the projector's weights and the adapter, if there is one."""
    ours = {name.removeprefix(TRAINED_PREFIX): value for name, value in weights.items() if name.startswith(TRAINED_PREFIX)}
    projector = {name: value for name, value in weights.items() if not name.startswith(TRAINED_PREFIX)}
    return projector, Adapter(lora.rank, lora.alpha, list(lora.targets), ours) if ours else None


def save_adapter(adapter: Adapter, decoder_id: str, folder: str | Path) -> None:
    """Writes an adapter as peft does; `decoder_id` is the hub id or folder of its decoder."""
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": decoder_id,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": adapter.targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    weights = {
        f"{PEFT_PREFIX}{name}.weight": weight.detach().float().cpu().contiguous() for name, weight in adapter.weights.items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=1) + "\n")
    (folder / ADAPTER_WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))


def load_adapter(config_file: str | Path, weights_file: str | Path) -> Adapter:
    """Reads the two files of an adapter.

    Raises:
        ConfigError: it is of a kind that is not computed here.
    """
    settings = json.loads(Path(config_file).read_text())
    asked = [name for name in UNKNOWN_OPTIONS if settings.get(name)]
    require(settings.get("peft_type") == "LORA" and not asked, f"{config_file}: only plain LoRA is computed here, not {asked}")
    weights = {name.removeprefix(PEFT_PREFIX).removesuffix(".weight"): weight for name, weight in load_file(weights_file).items()}
    return Adapter(settings["r"], settings["lora_alpha"], settings["target_modules"], weights)
