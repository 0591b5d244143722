"""Trains a CTC head on the frozen encoder of a saved model: encodes each clip once, then fits one linear layer to the frames.

Clips of silence and noise are among them, so that the head learns to hear nothing there. It knows nothing of Ray: an hour of
speech is enough for some 15,000 weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch import nn
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.audio.clip import SAMPLE_RATE, SAMPLES_PER_ENCODER_FRAME, Clip
from tiny_audio.config import absolute_data, require
from tiny_audio.data.batch import SILENCE, silent_clip
from tiny_audio.data.footers import read_dataset
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.shards import decode_slices
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.ctc_head import (
    BLANK,
    heard_text,
    letter_log_probs,
    new_ctc_head,
    save_ctc_head,
    spelled,
    spoken,
)
from tiny_audio.model.packing import pack
from tiny_audio.training.ctc_head_config import CTCHeadConfig

CLIPS_AT_ONCE = 16  # in the encoder
SILENT_SHARE = 0.03  # of clips without speech
HELD_OUT_EVERY = 20  # one clip of so many is not trained, but scored


@dataclass(frozen=True)
class EncodedClip:
    """Holds the encoder frames of a clip, (E, C) in float16 on the CPU, and what is said in it, as `spoken` folds it."""

    frames: torch.Tensor
    text: str


def _clips(config: CTCHeadConfig, max_duration_s: float) -> Iterator[Clip]:
    """Yields the labelled clips of all datasets whose whole label can be spelled, and silent ones among them."""
    rng, every = np.random.default_rng(config.seed), round(1 / SILENT_SHARE)
    for dataset in config.data:
        groups = read_dataset(absolute_data(dataset), config.max_rows, columns=config.columns)
        rows = (row for part in plan_pass(groups) for row in decode_slices([part], max_duration_s, columns=config.columns))
        for number, row in enumerate(rows):
            if isinstance(row, Clip) and len(spoken(row.text).split()) == len(row.text.split()):
                yield row
            if number % every == 0:
                yield silent_clip(rng, f"{SILENCE}-{number}")


@torch.no_grad()
def encode_clips(model: ASRModel, clips: Iterable[Clip]) -> Iterator[EncodedClip]:
    """Encodes clips as training and transcription do."""
    clips = iter(clips)
    while some := list(islice(clips, CLIPS_AT_ONCE)):
        batch = pack(some, model.packing(), unanswered=True)
        frames = model.encode_batch(batch.to(model.decoder.device)).half().cpu()
        for clip, of_clip in zip(batch.rows, frames.split(batch.num_frames), strict=True):
            yield EncodedClip(of_clip.clone(), spoken(clip.text))


def _losses(head: nn.Module, clips: list[EncodedClip]) -> torch.Tensor:
    """Computes the CTC loss of each clip, (B,); 0 where it has fewer frames than letters."""
    num_frames, num_letters = [len(clip.frames) for clip in clips], [len(clip.text) for clip in clips]
    log_probs = letter_log_probs(head, torch.cat([clip.frames for clip in clips]))
    targets = torch.tensor([letter for clip in clips for letter in spelled(clip.text)])
    sizes = torch.tensor(num_frames), torch.tensor(num_letters)
    return ctc_loss(pad_sequence(log_probs.split(num_frames)), targets, *sizes, BLANK, reduction="none", zero_infinity=True)


def fit_ctc_head(clips: list[EncodedClip], config: CTCHeadConfig) -> nn.Linear:
    """Trains a head on encoded clips, with AdamW and a learning rate that rises shortly and falls to nearly zero.

    The frames are brought to mean 0 and deviation 1 meanwhile, which the returned weights have in them.
    """
    torch.manual_seed(config.seed)
    frames = torch.cat([clip.frames for clip in clips]).float()
    mean, deviation = frames.mean(dim=0), frames.std(dim=0).clamp(min=1e-6)
    head = new_ctc_head(len(mean))
    scaled = lambda some: head((some - mean) / deviation)  # noqa: E731
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=1e-3)
    num_steps = config.num_epochs * -(-len(clips) // config.batch_rows)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, num_steps, pct_start=0.1)
    for _ in range(config.num_epochs):
        for rows in torch.randperm(len(clips)).split(config.batch_rows):
            losses = _losses(scaled, [clips[row] for row in rows.tolist()])
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        head.weight /= deviation
        head.bias -= head.weight @ mean
    return head


@torch.no_grad()
def letter_error_rate(head: nn.Module, clips: list[EncodedClip]) -> float:
    """Measures the share of letters that the head gets wrong by itself, over the clips in which something is said."""
    texts = [(clip.text, heard_text(letter_log_probs(head, clip.frames))) for clip in clips if clip.text]
    return float(jiwer.cer(*map(list, zip(*texts, strict=True))))


def train_ctc_head(config: CTCHeadConfig, show_progress: Callable[[Iterable], Iterable]) -> dict[str, float]:
    """Trains a head, and writes it into the model's folder; returns the figures of the training.

    Args:
        show_progress: wraps the iterable of encoded clips.

    Raises:
        ConfigError: the model is not in a folder here, or none of the rows can be used.
    """
    require(Path(config.model).is_dir(), f"model={config.model}: no such folder; the head is written into the model's")
    model, started = ASRModel.from_pretrained(config.model).to(config.device), time.perf_counter()
    clips = _clips(config, model.window_num_samples / SAMPLE_RATE)
    encoded = list(show_progress(encode_clips(model, clips)))
    held_out = encoded[::HELD_OUT_EVERY]
    trained = [clip for number, clip in enumerate(encoded) if number % HELD_OUT_EVERY]
    require(any(clip.text for clip in trained), f"{', '.join(config.data)}: no row is speech with a label of letters")
    encoded_after = time.perf_counter()
    head = fit_ctc_head(trained, config)
    save_ctc_head(head, config.model)
    return {
        "num_clips": len(trained),
        "hours": sum(len(clip.frames) for clip in trained) * SAMPLES_PER_ENCODER_FRAME / SAMPLE_RATE / 3600,
        "num_parameters": sum(weight.numel() for weight in head.parameters()),
        "letter_error_rate": letter_error_rate(head, held_out),
        "num_held_out": len(held_out),
        "encoding_s": encoded_after - started,
        "training_s": time.perf_counter() - encoded_after,
    }
