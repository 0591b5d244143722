"""Writes what an exported model is, for people and for the hub: its parts and their sizes, what trained it, and its scores."""

from __future__ import annotations

import json
from collections.abc import Collection

import torch
from torch import nn

from tiny_audio.audio.clip import SAMPLE_RATE, SAMPLES_PER_ENCODER_FRAME
from tiny_audio.config import TrainConfig
from tiny_audio.model.lora import Adapter, adapter_weights
from tiny_audio.run.checkpoint import Progress
from tiny_audio.storage import without_secrets

MODEL_CARD = "README.md"  # where the hub looks for it
CARD = """\
---
library_name: transformers
pipeline_tag: automatic-speech-recognition
base_model:
{base_models}
---

# {name}

These weights join a frozen encoder and a frozen decoder, which are loaded by their ids, to a speech recogniser.

| part | |
| --- | --- |
| encoder | {encoder} |
| decoder | {decoder} |
| projector | {projector} |
| LoRA | {adapter} |
| trained on | {data}: {num_rows:,} rows, {hours:.1f} hours with repeats |
| steps | {step} of {batch_rows} rows |
| validation | {scores} |
"""


def tokens_per_s(frames_per_token: int) -> float:
    """Returns the audio tokens that the projector makes of a second: 25 where a token is 2 encoder frames."""
    return SAMPLE_RATE / SAMPLES_PER_ENCODER_FRAME / frames_per_token


def describe_projector(kind: str, frames_per_token: int, weights: Collection[torch.Tensor]) -> str:
    """Says in words what kind of projector it is, and of what size."""
    num_parameters = sum(weight.numel() for weight in weights)
    return f"{kind}, {num_parameters:,} parameters, {tokens_per_s(frames_per_token):g} tokens a second"


def describe_sizes(model: nn.Module) -> str:
    """Says in words how many parameters of an `ASRModel` train, and how many are frozen."""
    kind, weights = model.config.projector_type, list(model.projector.parameters())
    backbones = {"encoder": model.encoder, "decoder": model.decoder}
    trained = sum(weight.numel() for weight in adapter_weights(model.decoder).values())
    adapter = f" and LoRA, {trained:,} parameters" if trained else ""
    frozen = [f"{name} {_num_frozen(part):,}" for name, part in backbones.items()]
    return f"trains projector {describe_projector(kind, model.frames_per_token, weights)}{adapter}; frozen: {', '.join(frozen)}"


def _num_frozen(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if not weight.requires_grad)


def describe_adapter(adapter: Adapter | None) -> str:
    """Says in words what adapter the decoder has."""
    if adapter is None:
        return "none"
    num_parameters = sum(weight.numel() for weight in adapter.weights.values())
    return f"rank {adapter.rank} on {', '.join(adapter.targets)}, {num_parameters:,} parameters, merged when loaded"


def model_card(config: TrainConfig, projector: str, adapter: str, exported: Progress) -> str:
    """Makes the card of a run's model, as Markdown.

    Args:
        projector: what `describe_projector` says.
        adapter: what `describe_adapter` says.
        exported: the progress of the checkpoint that the model is from.
    """
    scores = [f"{name.removeprefix('val_')} {score:.4g}" for name, score in exported.scores.items()]
    return CARD.format(
        name=config.name,
        base_models="\n".join(f"- {json.dumps(name)}" for name in (config.model.audio_model_id, config.model.text_model_id)),
        encoder=config.model.audio_model_id,
        decoder=config.model.text_model_id,
        projector=projector,
        adapter=adapter,
        data=", ".join(map(without_secrets, config.data.train_weights)),
        num_rows=exported.num_rows,
        hours=exported.audio_s / 3600,
        step=exported.step,
        batch_rows=config.data.batch_rows,
        scores=", ".join(scores) or "none at this step",
    )
