"""Measures whether a clip is clipped, how loud it is, and how long it is silent at its ends, in pure numpy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE

FULL_SCALE = 32_600  # of 32,768; resampling and mixing move a clipped sample a little
CLIPPED_SHARE = 1e-4  # of a clip's samples at full scale: speech that was not clipped touches it a few times at most
FRAME_S = 0.02
SILENT_DB = 40.0  # a frame this far below the loudest is a pause
FLOOR_DBFS = -100.0  # of digital silence, whose level has no logarithm


@dataclass(frozen=True)
class Measures:
    """Describes the sound of one clip."""

    clipped: bool
    level_dbfs: float  # RMS of the whole clip; a sine at full scale has -3
    lead_s: float  # silence before the first sound
    trail_s: float  # silence after the last one
    digest: str  # of the samples: the same audio in another file has the same


def _dbfs(mean_square: np.ndarray) -> np.ndarray:
    return np.maximum(FLOOR_DBFS, 10 * np.log10(np.maximum(mean_square, 1e-12) / 32_768.0**2))


def measure(pcm: np.ndarray) -> Measures:
    """Measures (S,) int16 samples at 16 kHz."""
    frame = int(FRAME_S * SAMPLE_RATE)
    padded = np.pad(pcm.astype(np.float64), (0, -len(pcm) % frame)).reshape(-1, frame)
    levels = _dbfs((padded**2).mean(axis=1))
    loud = np.flatnonzero(levels > max(levels.max() - SILENT_DB, FLOOR_DBFS))
    first, last = (loud[0], loud[-1]) if len(loud) else (len(levels), len(levels) - 1)
    return Measures(
        clipped=bool((np.abs(pcm.astype(np.int32)) >= FULL_SCALE).mean() > CLIPPED_SHARE),
        level_dbfs=round(float(_dbfs(np.mean(pcm.astype(np.float64) ** 2))), 1),
        lead_s=round(float(first * FRAME_S), 2),
        trail_s=round(float((len(levels) - 1 - last) * FRAME_S), 2),
        digest=hashlib.blake2b(pcm.tobytes(), digest_size=12).hexdigest(),
    )
