"""Makes training clips harder with another speed, noise and masked spans of the spectrogram; uses numpy and not Ray.

The result depends only on the seed, the epoch and the clip's id, so it is the same on any number of workers and after a
restart. Only training calls this module: validation and evaluation hear every clip as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import soxr

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.config import AugmentConfig

WHITE, BROWN = NOISES = ("white noise", "brown noise")
FULL_SCALE = 32767
FRAME_SAMPLES = SAMPLE_RATE // 100  # samples per mel frame: `clip.HOP_SAMPLES`
MAX_TIME_MASK_SHARE = 0.2  # largest share of frames per time mask: p of SM and SS (Park et al. 2019, table 1)


def clip_rng(seed: int, epoch: int, clip_id: str, purpose: str) -> np.random.Generator:
    """Returns a clip's random generator for an epoch; each `purpose` has its own stream, independent of the others."""
    digest = hashlib.sha256(f"{purpose}\0{clip_id}".encode()).digest()
    return np.random.default_rng((seed, epoch, int.from_bytes(digest[:8])))


def make_noise(rng: np.random.Generator, num_samples: int, kind: str) -> np.ndarray:
    """Returns (S,) float64 noise of any loudness: white noise has a flat spectrum, brown noise falls by 6 dB per octave."""
    noise = rng.standard_normal(num_samples)
    if kind == BROWN:
        noise = np.cumsum(noise)
        noise -= noise.mean()
    return noise


def change_speed(pcm: np.ndarray, factor: float) -> np.ndarray:
    """Changes tempo and pitch together, like a faster tape (Ko et al. 2015): (S,) int16 to (about S / factor,) int16."""
    if factor == 1.0:
        return pcm
    faster = soxr.resample(pcm.astype(np.float32), SAMPLE_RATE * factor, SAMPLE_RATE)
    return np.clip(np.rint(faster), -FULL_SCALE, FULL_SCALE).astype(np.int16)


def add_noise(pcm: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Mixes `noise` of the same length into (S,) int16, quieter by `snr_db`, and turns the mix down where it would clip.

    The ratio compares the mean powers over the clip. Digital silence has no power and stays as it is.
    """
    power, noise_power = np.mean(np.square(pcm, dtype=np.float64)), np.mean(np.square(noise))
    if power == 0 or noise_power == 0:
        return pcm
    mixed = pcm + noise * np.sqrt(power / noise_power / 10 ** (snr_db / 10))
    return np.rint(mixed * min(1.0, FULL_SCALE / np.abs(mixed).max())).astype(np.int16)


def augment_clip(clip: Clip, config: AugmentConfig, max_duration_s: float, seed: int, epoch: int) -> Clip:
    """Plays the clip at one of `speed_factors`, never beyond `max_duration_s`, and adds noise to `noise_share` of the clips."""
    pcm = clip.pcm
    if config.speed_factors:
        factor = float(clip_rng(seed, epoch, clip.id, "speed").choice(config.speed_factors))
        fits = np.ceil(len(pcm) / factor) <= max_duration_s * SAMPLE_RATE
        pcm = change_speed(pcm, factor) if fits else pcm
    rng = clip_rng(seed, epoch, clip.id, "noise")
    if rng.random() < config.noise_share:
        snr_db = rng.uniform(*config.noise_snr_db)
        pcm = add_noise(pcm, make_noise(rng, len(pcm), str(rng.choice(NOISES))), snr_db)
    return replace(clip, pcm=pcm)


@dataclass(frozen=True)
class MaskSpans:
    """Holds the half-open spans of a batch's (B, M, F) log-mels to hide; a span that stops where it starts hides nothing."""

    time: np.ndarray  # (B, time masks, 2) frames
    frequency: np.ndarray  # (B, frequency masks, 2) mel bins
    num_frames: np.ndarray  # (B,) frames of each clip, without its padding

    def of(self, first: int, last: int) -> MaskSpans:
        """Returns the spans of clips [first, last)."""
        return MaskSpans(self.time[first:last], self.frequency[first:last], self.num_frames[first:last])


def _draw_spans(rng: np.random.Generator, count: int, widest: int, length: int) -> np.ndarray:
    """Draws (count, 2) spans: first a width from 0 to `widest`, then a start that keeps the span within [0, length)."""
    widths = rng.integers(0, min(widest, length), count, endpoint=True)
    starts = rng.integers(0, length - widths, endpoint=True)
    return np.stack([starts, starts + widths], axis=1)


def draw_masks(rng: np.random.Generator, num_frames: int, num_mels: int, config: AugmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Draws SpecAugment masks (Park et al. 2019, 2.2): (time masks, 2) in frames and (frequency masks, 2) in mel bins."""
    widest = min(config.time_mask_frames, int(num_frames * MAX_TIME_MASK_SHARE))
    time = _draw_spans(rng, config.time_masks, widest, num_frames)
    return time, _draw_spans(rng, config.frequency_masks, config.frequency_mask_mels, num_mels)


def batch_masks(clips: list[Clip], num_mels: int, config: AugmentConfig, seed: int, epoch: int) -> MaskSpans | None:
    """Draws the masks of a training batch, or returns None if the config asks for none or the batch is empty."""
    if not clips or not (config.time_masks or config.frequency_masks):
        return None
    num_frames = [-(-len(clip.pcm) // FRAME_SAMPLES) for clip in clips]
    drawn = [
        draw_masks(clip_rng(seed, epoch, clip.id, "masks"), frames, num_mels, config)
        for clip, frames in zip(clips, num_frames, strict=True)
    ]
    time, frequency = (np.stack(spans) for spans in zip(*drawn, strict=True))
    return MaskSpans(time, frequency, np.array(num_frames))
