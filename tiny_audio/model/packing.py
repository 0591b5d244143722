"""Packs clips into the tensors of one forward pass, on the CPU: PCM, prompts and labels end to end, and where each lies.

Log-mels, which transformers' models and pipelines take, are laid out alike at the end of this file.

All sizes and positions are settled here, so that nothing is ever read back from the device that computes. The letters
in shapes are those of `features.py`; N is the packed length of the decoder's input over all clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tiny_audio.audio.augment import MaskSpans
from tiny_audio.audio.clip import (
    HOP_SAMPLES,
    SAMPLE_RATE,
    SAMPLES_PER_ENCODER_FRAME,
    Clip,
    num_audio_tokens,
    padded_num_samples,
    require_clips,
)
from tiny_audio.audio.features import estimated_num_samples
from tiny_audio.model.prompt import IGNORED_LABEL, Prompt, label_ids
from tiny_audio.model.segments import Segments, SharedHead, bounds_of, move, segments, share_head

GROUP_CLIPS = 32  # whose log-mels are made together
GROUP_S = 480.0  # the most that their padded lengths add up to
MELS_PER_ENCODER_FRAME = SAMPLES_PER_ENCODER_FRAME // HOP_SAMPLES


class Group(NamedTuple):
    """Names clips [first, last), whose log-mels are made together, padded to `num_samples` each."""

    first: int
    last: int
    num_samples: int


@dataclass(frozen=True)
class Packing:
    """Says how clips are laid out for a model."""

    tokenizer: object
    prompt: Prompt
    window_num_samples: int  # the encoder's
    trimmed: bool  # each clip is encoded at its own length, else padded to the window
    frames_per_token: int  # the projector's
    grouped: bool = True  # False: one group, as where workers must run every module equally often


@dataclass
class PackedBatch:
    """Holds clips as `ASRModel.forward` takes them: first those whose encoder frames are at hand, then the rest by length."""

    rows: list[Clip]  # all of them, in order
    known: torch.Tensor | None  # (frames, C) of the clips that need not be encoded
    fresh: list[Clip]  # those to encode, in order
    pcm: torch.Tensor  # (S,) int16, theirs, end to end
    sample_bounds: torch.Tensor  # (b + 1,) where each of them begins
    groups: list[Group]  # how they are grouped; empty where all are known
    frame_index: torch.Tensor  # (frames,) which of each group's encoder frames clips fill, counted over its rows
    num_frames: list[int]  # the frames of each clip to encode
    frames: Segments | None  # where those lie
    masks: MaskSpans | None  # what of their log-mels is hidden from the encoder
    first_tokens: torch.Tensor  # (B,) each clip's first audio token
    head: torch.Tensor  # (P,) the ids that begin every prompt; all clips share what is computed of them
    ids: torch.Tensor  # (N,) the rest of the prompt, with audio (any id), and the answer
    positions: torch.Tensor  # (N,) within the clip, of which the head's are the first
    audio: torch.Tensor  # (A,) where the audio tokens lie in N
    clips: Segments  # where each clip lies in N
    shared: SharedHead  # how clips attend to the head
    labels: torch.Tensor  # (L,)
    predicting: torch.Tensor  # (L,) the position in N that predicts each label
    answers: Segments  # where each clip's labels lie in L
    num_label_tokens: int
    num_tokens: list[int]  # the audio tokens of each clip
    num_labels: list[int]  # the labels of each clip

    def group_frames(self) -> list[torch.Tensor]:
        """Splits `frame_index` by group."""
        return list(self.frame_index.split([sum(self.num_frames[group.first : group.last]) for group in self.groups]))

    def to(self, device: torch.device | str) -> PackedBatch:
        """Copies the batch to `device`, without waiting for the copies."""
        return self._copied(partial(move, device=device))

    def pin(self) -> PackedBatch:
        """Copies the batch to page-locked memory, from which copies to a GPU run beside the computation."""
        return self._copied(torch.Tensor.pin_memory)

    def _copied(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        return PackedBatch(*(_copied(getattr(self, item.name), copy) for item in dataclasses.fields(self)))


def _copied(value: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return copy(value)
    if isinstance(value, Segments | SharedHead):
        return type(value)(*(_copied(part, copy) for part in value))
    return value


def silence(packing: Packing) -> Clip:
    """Returns a clip of one token for a worker that has none, but must compute one to meet the others."""
    return Clip("", np.zeros(packing.frames_per_token * SAMPLES_PER_ENCODER_FRAME, np.int16), "")


def _runs(starts: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Lists every position of the runs [start, start + length), one run after the other."""
    offsets = np.repeat(starts - bounds_of(lengths)[:-1], lengths)
    return offsets + np.arange(int(np.sum(lengths)))


def group_clips(num_samples: Sequence[int], packing: Packing) -> list[Group]:
    """Groups neighbours of like length, a few at a time; `num_samples` ascend."""
    groups: list[Group] = []
    for i, longest in enumerate(num_samples):
        padded = padded_num_samples(longest, packing.window_num_samples, packing.trimmed, packing.frames_per_token)
        first = groups[-1].first if groups else 0
        count = i + 1 - first
        fits = count <= GROUP_CLIPS and count * padded <= GROUP_S * SAMPLE_RATE
        if groups and (fits or not packing.grouped):
            groups[-1] = Group(first, i + 1, padded)
        else:
            groups.append(Group(i, i + 1, padded))
    return groups


def frame_index(groups: list[Group], num_frames: Sequence[int]) -> torch.Tensor:
    """Lists which of each group's encoder frames clips of `num_frames` fill, counted over its rows; group after group.

    A window may not hold whole tokens: there, a clip's last token has the window's last frame several times.
    """
    parts = [np.zeros(0, np.int64)]
    for group in groups:
        counts, row_frames = num_frames[group.first : group.last], group.num_samples // SAMPLES_PER_ENCODER_FRAME
        within = _runs(np.zeros(len(counts), int), counts)
        rows = np.repeat(np.arange(len(counts)), counts)
        parts.append(rows * row_frames + np.minimum(within, row_frames - 1))
    return torch.from_numpy(np.concatenate(parts))


def _layout(num_tokens: list[int], answers: list[list[int]], prompt: Prompt) -> dict[str, Any]:
    """Makes the fields of a `PackedBatch` that say where prompts, audio tokens and answers lie in the decoder's input."""
    prefix, suffix = prompt.prefix, prompt.suffix
    parts = [part for n, answer in zip(num_tokens, answers, strict=True) for part in (np.zeros(n, int), suffix, answer[:-1])]
    lengths = [n + len(suffix) + len(answer) - 1 for n, answer in zip(num_tokens, answers, strict=True)]
    num_labels = [len(answer) for answer in answers]
    labels = np.concatenate(answers)
    starts, ends = bounds_of(lengths)[:-1], bounds_of(lengths)[1:]
    return {
        "first_tokens": torch.from_numpy(bounds_of(num_tokens)[:-1]),
        "head": torch.tensor(prefix, dtype=torch.int64),
        "ids": torch.from_numpy(np.concatenate(parts).astype(np.int64)),
        "positions": torch.from_numpy(_runs(np.full(len(lengths), len(prefix)), lengths)),
        "audio": torch.from_numpy(_runs(starts, num_tokens)),
        "clips": segments(lengths),
        "shared": share_head(lengths, len(prefix)),
        "labels": torch.from_numpy(labels),
        "predicting": torch.from_numpy(_runs(ends - num_labels, num_labels)),
        "answers": segments(num_labels),
        "num_label_tokens": len(labels),
        "num_tokens": num_tokens,
        "num_labels": num_labels,
    }


def pack(
    clips: Sequence[Clip],
    packing: Packing,
    known: dict[int, torch.Tensor] | None = None,
    draw_masks: Callable[[list[Clip]], MaskSpans | None] = lambda clips: None,
    unanswered: bool = False,
) -> PackedBatch:
    """Lays out clips; without any, one silent clip whose labels do not count.

    Args:
        clips: those of a micro-batch.
        packing: the model's.
        known: encoder frames (frames, C) of some clips, by their place in `clips`.
        draw_masks: what to hide of the log-mels of the others.
        unanswered: the answer's first token is what each clip must predict, and no label is known.

    Raises:
        ValueError: a clip is longer than the encoder's window, or has several channels.
    """
    if not clips:
        idle = pack([silence(packing)], packing, None, draw_masks)
        return dataclasses.replace(idle, labels=torch.full_like(idle.labels, IGNORED_LABEL), num_label_tokens=0)
    require_clips([clip.pcm for clip in clips], packing.window_num_samples)
    known = known or {}
    fresh = sorted((clip for i, clip in enumerate(clips) if i not in known), key=lambda clip: len(clip.pcm))
    rows = [clips[i] for i in known] + fresh
    num_tokens = [num_audio_tokens(len(clip.pcm), packing.frames_per_token) for clip in rows]
    if unanswered:
        answers = [[IGNORED_LABEL]] * len(rows)
    else:
        answers = label_ids(packing.tokenizer, packing.prompt, [clip.text for clip in rows])
    groups = group_clips([len(clip.pcm) for clip in fresh], packing)
    num_frames = [packing.frames_per_token * n for n in num_tokens[len(known) :]]
    return PackedBatch(
        rows=rows,
        known=torch.cat(list(known.values())) if known else None,
        fresh=fresh,
        pcm=torch.from_numpy(np.concatenate([np.zeros(0, np.int16), *(clip.pcm for clip in fresh)])),
        sample_bounds=torch.from_numpy(bounds_of([len(clip.pcm) for clip in fresh])),
        groups=groups,
        frame_index=frame_index(groups, num_frames),
        num_frames=num_frames,
        frames=segments(num_frames) if fresh else None,
        masks=draw_masks(fresh),
        **_layout(num_tokens, answers, packing.prompt),
    )


def pack_encoded(encoded: torch.Tensor, num_tokens: list[int], answers: list[list[int]], prompt: Prompt) -> PackedBatch:
    """Lays out clips whose encoder frames are at hand: (k A, C), end to end, and the ids of each clip's answer."""
    return PackedBatch(
        rows=[],
        known=encoded,
        fresh=[],
        pcm=torch.zeros(0, dtype=torch.int16),
        sample_bounds=torch.zeros(1, dtype=torch.int64),
        groups=[],
        frame_index=frame_index([], []),
        num_frames=[],
        frames=None,
        masks=None,
        **_layout(num_tokens, answers, prompt),
    )


def padded_rows(pcm: torch.Tensor, sample_bounds: torch.Tensor, group: Group) -> torch.Tensor:
    """Takes the clips of a group out of packed PCM (S,): (b, group.num_samples) int16, with silence behind their ends."""
    starts, ends = sample_bounds[group.first : group.last, None], sample_bounds[group.first + 1 : group.last + 1, None]
    index = starts + torch.arange(group.num_samples, device=pcm.device)
    return torch.where(index < ends, pcm[index.clamp(max=pcm.shape[0] - 1)], 0)


def count_tokens(
    model: PreTrainedModel, log_mels: torch.Tensor, num_samples: torch.Tensor | None, attention_mask: torch.Tensor | None
) -> list[int]:
    """Counts the audio tokens of each clip behind (B, M, F) log-mels; the arguments are those of `ASRModel.generate`.

    Raises:
        ValueError: the log-mels have another shape than the model's encoder takes.
    """
    longest = model.window_num_samples // HOP_SAMPLES
    if log_mels.ndim != 3 or log_mels.shape[1] != model.num_mels or log_mels.shape[2] > longest:
        shape = f"(batch, {model.num_mels}, at most {longest})"
        raise ValueError(f"input_features must be log-mels of shape {shape}, not {tuple(log_mels.shape)}")
    if num_samples is None and attention_mask is not None:
        num_samples = attention_mask.sum(dim=1) * HOP_SAMPLES
    if num_samples is None:
        num_samples = estimated_num_samples(log_mels)
    return num_audio_tokens(num_samples, model.frames_per_token).tolist()


def _encode_padded(model: PreTrainedModel, log_mels: torch.Tensor, num_tokens: list[int]) -> torch.Tensor:
    """Encodes (B, M, F) log-mels that are padded alike, and keeps the frames of their clips, end to end."""
    num_frames = [model.frames_per_token * n for n in num_tokens]
    missing = MELS_PER_ENCODER_FRAME * max(num_frames) - log_mels.shape[-1]
    if missing >= MELS_PER_ENCODER_FRAME * model.frames_per_token:
        raise ValueError(f"num_samples is more than the {log_mels.shape[-1]} frames of input_features hold")
    room = model.window_num_samples // HOP_SAMPLES - log_mels.shape[-1]
    log_mels = pad(log_mels, (0, max(0, min(missing, room))), mode="replicate")  # the last token's, where it was cut
    group = Group(0, len(num_tokens), log_mels.shape[-1] * HOP_SAMPLES)
    index = frame_index([group], num_frames).to(log_mels.device)
    return model.encode([log_mels], [index], segments(num_frames).to(log_mels.device))


def packed_log_mels(model: PreTrainedModel, log_mels: torch.Tensor, labels: torch.Tensor, num_tokens: list[int]) -> PackedBatch:
    """Lays out log-mels (B, M, F) and their labels (B, L) as `pack` does clips."""
    device = model.decoder.device
    answers = [[label for label in row if label != IGNORED_LABEL] for row in labels.tolist()]
    encoded = _encode_padded(model, log_mels.to(device), num_tokens)
    return pack_encoded(encoded, num_tokens, answers, model.prompt).to(device)


def prompted_log_mels(model: PreTrainedModel, log_mels: torch.Tensor, num_tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Builds what `generate` starts from: (B, T, D) prompts with their audio, padded on the left, and a (B, T) mask."""
    device = log_mels.device
    first = segments(num_tokens).bounds[:-1].to(device, torch.int64)
    audio = model.project(_encode_padded(model, log_mels, num_tokens), first).split(num_tokens)
    prefix, suffix = (
        model.decoder.model.embed_tokens(torch.tensor(ids, device=device)) for ids in (model.prompt.prefix, model.prompt.suffix)
    )
    prompts = pad_sequence([torch.cat([prefix, tokens, suffix]) for tokens in audio], batch_first=True, padding_side="left")
    lengths = torch.tensor(num_tokens, device=device) + len(prefix) + len(suffix)
    return prompts, (torch.arange(prompts.shape[1], device=device) >= prompts.shape[1] - lengths[:, None]).long()
