"""Hides spans of training clips' log-mels on the training device, like SpecAugment without its warping (Park et al. 2019)."""

from __future__ import annotations

import torch

from tiny_audio.audio.augment import MaskSpans


def _covered(spans: torch.Tensor, length: int) -> torch.Tensor:
    """Says for each position, as (B, length), whether it lies in any of its clip's (B, masks, 2) half-open spans."""
    position = torch.arange(length, device=spans.device)
    return ((position >= spans[..., :1]) & (position < spans[..., 1:])).any(dim=1)


def apply_masks(log_mel: torch.Tensor, spans: MaskSpans) -> torch.Tensor:
    """Hides the spans of (B, M, F) log-mels, without reading anything back from the device or changing the padding.

    Hidden values become the clip's mean, as in the paper. The paper's other choice, the floor, looks like silence, and the
    model must learn to hear no words in silence.
    """
    time, frequency, num_frames = (
        torch.from_numpy(part).to(log_mel.device, non_blocking=True) for part in (spans.time, spans.frequency, spans.num_frames)
    )
    _, num_mels, padded_frames = log_mel.shape
    own = torch.arange(padded_frames, device=log_mel.device) < num_frames[:, None]  # (B, F): frames without padding
    hidden = (_covered(time, padded_frames)[:, None, :] | _covered(frequency, num_mels)[:, :, None]) & own[:, None, :]
    mean = (log_mel * own[:, None, :]).sum(dim=(1, 2)) / (num_frames * num_mels)
    return torch.where(hidden, mean[:, None, None].to(log_mel.dtype), log_mel)
