"""Builds the model that a run trains, on each worker alike."""

from __future__ import annotations

import dataclasses
import os
import shutil

import torch

from tiny_audio.config import TrainConfig, require
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.ctc import AudioCTC
from tiny_audio.model.fp8 import freeze_to_fp8, require_fp8
from tiny_audio.model.layers import compiled_layers
from tiny_audio.model.lora import attach_adapter
from tiny_audio.model.whole_layers import call_whole_layers
from tiny_audio.training.zero import compile_for_stage_3


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Says whether a run compiles the layers of the backbones on a device."""
    return config.compile and device.type == "cuda"


def build_model(config: TrainConfig, device: torch.device) -> ASRModel:
    """Builds the model with a fresh projector, and a fresh adapter where one trains: the same on every worker for a seed."""
    has_compiler = any(name and shutil.which(name) for name in (os.environ.get("CC"), "gcc", "clang", "cc"))
    remedy = "compile=true needs a C compiler on the GPU nodes (apt install gcc), or set it to false"
    require(has_compiler or not compiles(config, device), remedy)
    if config.fp8:
        require_fp8()
    torch.manual_seed(config.seed)
    model = ASRModel(ASRConfig(**dataclasses.asdict(config.model))).to(device)
    if config.lora.rank:
        attach_adapter(model.decoder, config.lora.rank, config.lora.alpha, config.lora.targets)
    if config.ctc_weight:
        model.ctc = AudioCTC.of(config.ctc_weight, model.tokenizer, model.prompt)
    if config.fp8:
        freeze_to_fp8(model)
    if compiles(config, device):
        model.layers = compiled_layers(model.family)
    if config.zero_stage == 3:
        compile_for_stage_3()
        call_whole_layers(model)
    return model
