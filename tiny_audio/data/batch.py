"""Makes the batches of every worker and step from the rows of a window. Pure numpy; knows nothing of Ray.

What a step trains is settled before its rows are dealt out: the number of workers decides which of them computes a clip,
never with which other clips it is averaged. A row's step depends on its place in the plan alone: if a file breaks or is
mended between two readings of a window, as when a run resumes in the middle of one, no other row changes its step.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

import numpy as np

from tiny_audio.audio.augment import NOISES, make_noise
from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.data.plan import Window
from tiny_audio.data.rows import LeftOut, Reject, Row

SILENCE = "silence"  # a kind of made clip, and the source of all made clips
SILENCE_S = (0.25, 4.0)  # shortest and longest of the silent clips
NOISE_PEAK = (10, 4000)  # peak of the quietest and the loudest noisy clip, of 32,767
CLIP_S = 2.0  # what a clip's prompt and label cost, in seconds of audio: about 50 of the decoder's positions


@dataclass
class WorkerBatch:
    """One worker's share of one step: its clips, shortest first."""

    step: int
    epoch: int
    rank: int
    num_step_rows: int  # over all workers, without the made clips
    largest_share_s: float  # `load_s` of the heaviest share: all workers compute in as many parts as it needs
    clips: list[Clip]
    rejects: list[Reject] = field(default_factory=list)  # of the whole step; only rank 0's batch carries them
    left_out: dict[str, int] = field(default_factory=dict)  # likewise: rows that the epoch does not take, by source


def silent_clip(rng: np.random.Generator, name: str) -> Clip:
    """Makes a clip of digital silence, white or brown noise with an empty label: a recogniser must hear no words in it."""
    num_samples = int(rng.uniform(*SILENCE_S) * SAMPLE_RATE)
    kind = (SILENCE, *NOISES)[rng.integers(1 + len(NOISES))]
    noise = make_noise(rng, num_samples, kind) * (kind != SILENCE)
    peak = np.exp(rng.uniform(*np.log(NOISE_PEAK)))
    pcm = noise * peak / max(1e-9, float(np.abs(noise).max()))
    return Clip(name, pcm.astype(np.int16), text="", speaker=kind, source=SILENCE)


def _with_silence(rows: list[Row], share: float, window: Window, rng: np.random.Generator) -> list[Row]:
    count = round(len(rows) * share)
    return rows + [silent_clip(rng, f"silence-{window.epoch}-{window.index}-{i}") for i in range(count)]


def arrange_steps(rows: list[Row], num_steps: int, rng: np.random.Generator) -> list[list[Row]]:
    """Spreads rows evenly over the steps in random order; a row stays with its copies, to be trained or rejected as a whole."""
    places = np.array_split(rng.permutation(len(rows)), num_steps)
    times = [row.copies if isinstance(row, Clip) else 1 for row in rows]
    return [[rows[i] for i in part for _ in range(times[i])] for part in places]


def load_s(clips: list[Clip]) -> float:
    """Estimates what clips cost to train, in seconds of audio."""
    return sum(clip.duration_s + CLIP_S for clip in clips)


def deal(clips: list[Clip], num_shares: int) -> list[list[Clip]]:
    """Deals clips into shares of similar load: the longest first, each to the least loaded. Each share is shortest first."""
    shares: list[list[Clip]] = [[] for _ in range(num_shares)]
    loads = [(0.0, number) for number in range(num_shares)]
    heapify(loads)
    for clip in sorted(clips, key=lambda clip: len(clip.pcm), reverse=True):
        load, number = loads[0]
        shares[number].append(clip)
        heapreplace(loads, (load + load_s([clip]), number))
    return [share[::-1] for share in shares]


def num_micro_batches(largest_share_s: float, micro_batch_s: float) -> int:
    """Counts the parts that a step's shares are computed in, so that each is near `micro_batch_s`."""
    return max(1, math.ceil(largest_share_s / micro_batch_s))


def window_batches(
    window: Window, rows: list[Row], *, seed: int, num_workers: int, silence_share: float = 0.0
) -> list[WorkerBatch]:
    """Makes all batches of a window, by step and within a step by worker.

    Args:
        rows: all rows of the window, in the order of the plan.
    """
    rng = np.random.default_rng((seed, window.epoch, window.index))
    steps = arrange_steps(_with_silence(rows, silence_share, window, rng), window.num_steps, rng)
    batches = []
    for step, of_step in enumerate(steps, window.first_step):
        clips = [row for row in of_step if isinstance(row, Clip)]
        num_rows = sum(bool(clip.text) for clip in clips)
        shares = deal(clips, num_workers)
        largest_s = max(load_s(share) for share in shares)
        by_rank = [WorkerBatch(step, window.epoch, rank, num_rows, largest_s, share) for rank, share in enumerate(shares)]
        by_rank[0].rejects = [row for row in of_step if isinstance(row, Reject)]
        by_rank[0].left_out = dict(Counter(row.source for row in of_step if isinstance(row, LeftOut)))
        batches += by_rank
    return batches
