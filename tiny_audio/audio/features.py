"""Turns waveforms into log-mel spectrograms on the device that trains or serves, and estimates lengths from spectrograms.

The letters in shapes mean: B clips, S samples at 16 kHz, M mel bins, F mel frames (100 per second), E encoder frames
(50 per second), A audio tokens (25 per second), C encoder width, D decoder width, T decoder positions, L label tokens.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import pad
from transformers.audio_utils import mel_filter_bank

from tiny_audio.audio.clip import HOP_SAMPLES, N_FFT, SAMPLE_RATE


@lru_cache(maxsize=4)
def _mel_filters(num_mels: int, device: torch.device) -> torch.Tensor:
    filters = mel_filter_bank(1 + N_FFT // 2, num_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).float().T.contiguous().to(device)  # (M, N_FFT / 2 + 1)


def log_mel(waveforms: torch.Tensor, num_mels: int) -> torch.Tensor:
    """Computes Whisper's log-mel spectrogram of zero-padded clips.

    Args:
        waveforms: (B, S) float32 in [-1, 1], or int16; S a multiple of 320.
        num_mels: mel bins M; 128 for whisper-large-v3.

    Returns:
        (B, M, S / 160) float32, equal to `WhisperFeatureExtractor` on the same padded clips.
    """
    if waveforms.dtype == torch.int16:
        waveforms = waveforms.float() / 32768.0
    window = torch.hann_window(N_FFT, device=waveforms.device)
    spectrum = torch.stft(waveforms, N_FFT, HOP_SAMPLES, window=window, return_complex=True)[..., :-1]
    mel = _mel_filters(num_mels, waveforms.device) @ spectrum.abs().square()
    log_spec = mel.clamp(min=1e-10).log10()
    loudest = log_spec.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(log_spec, loudest - 8.0) + 4.0) / 4.0


def pad_waveforms(waveforms: list[torch.Tensor], num_samples: int) -> torch.Tensor:
    """Right-pads 1-D clips with silence to (B, num_samples)."""
    return torch.stack([pad(clip, (0, num_samples - clip.shape[0])) for clip in waveforms])


def estimated_num_samples(input_features: torch.Tensor) -> torch.Tensor:
    """Estimates the lengths (B,) in samples of the clips behind (B, M, F) log-mels when they were not kept.

    Final frames count as padding if all their bins lie on the clip's floor. The estimate is exact to a frame (10 ms).
    """
    audible = (input_features > input_features.amin(dim=(1, 2), keepdim=True) + 1e-6).any(dim=1)  # (B, F)
    frames = torch.arange(1, audible.shape[1] + 1, device=audible.device)
    last = (audible * frames).amax(dim=1) - 1
    # Frame f sees samples up to 160 f + 199, so its last sample is at most 160 f - 40 past the one that frame f - 1 misses.
    return (last * HOP_SAMPLES - 40).clamp(min=1)
