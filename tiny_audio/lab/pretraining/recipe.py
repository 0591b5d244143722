"""What both pre-trainings of the embedded backbones share: the window, the learning-rate schedule and the file format."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

WINDOW_S = 8  # the embedded encoder's; Whisper's is 30


def one_cycle(optimizer: torch.optim.Optimizer, num_steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Warms up shortly to the optimizer's own rate, then lowers it to nearly zero (Smith and Topin 2017)."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], num_steps, pct_start=0.06)


def update(loss: torch.Tensor, weights: list[torch.Tensor], optimizer: torch.optim.Optimizer, schedule) -> None:
    """Takes one step: computes the gradients, clips them to norm 1, applies them."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    schedule.step()


def save_backbone(folder: Path, model_config, state: dict[str, torch.Tensor]) -> None:
    """Writes config.json and float16 weights, as a hub folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    model_config.dtype = "float16"
    model_config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
