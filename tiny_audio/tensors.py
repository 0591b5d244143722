"""Clips to the tensors that the model takes, on its device: the last stop before `ASRModel.forward`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from tiny_audio.asr_modeling import ASRModel
from tiny_audio.features import SAMPLES_PER_TOKEN, log_mel, pad_waveforms, padded_num_samples
from tiny_audio.shards import Clip
from tiny_audio.text import IGNORED_LABEL, label_ids


def silence() -> Clip:
    """Stands in where a worker has no clip but must compute one, to meet the others. It carries no label."""
    return Clip("", np.zeros(SAMPLES_PER_TOKEN, np.int16), "")


def split(clips: list[Clip], parts: int) -> list[list[Clip]]:
    """`parts` runs of clips, as even as can be; some are empty where there are few."""
    bounds = np.linspace(0, len(clips), parts + 1).round().astype(int)
    return [clips[start:stop] for start, stop in pairwise(bounds)]


def tokenize(model: ASRModel, clips: list[Clip]) -> list[list[int]]:
    """Label token ids of each clip."""
    return [label_ids(model.tokenizer, clip.text) for clip in clips]


def collate(model: ASRModel, clips: list[Clip], longest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """The arguments of `ASRModel.forward`; without clips, one silent row without labels.

    Args:
        longest: samples of the longest clip that these are padded alike to, where the model's window is "trimmed".
    """
    device = model.decoder.device
    ids = tokenize(model, clips) or [[IGNORED_LABEL]]
    width = max(len(row) for row in ids)
    labels = torch.tensor([row + [IGNORED_LABEL] * (width - len(row)) for row in ids])
    clips = clips or [silence()]
    padded = padded_num_samples(longest, model.window_num_samples, model.config.encoder_window == "trimmed")
    pcm = pad_waveforms([torch.from_numpy(clip.pcm.copy()) for clip in clips], padded)
    num_samples = torch.tensor([len(clip.pcm) for clip in clips])
    return log_mel(pcm.to(device), model.num_mels), num_samples.to(device), labels.to(device), max(longest, SAMPLES_PER_TOKEN)
