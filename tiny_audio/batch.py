"""Clips of a window to the ready-made batches of every worker and step. Pure numpy; knows nothing of Ray.

What a step trains is fixed before it is dealt out: the number of workers decides who computes a clip, never with which
others it is averaged, nor how far it is padded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tiny_audio.decode import SAMPLE_RATE
from tiny_audio.plan import Window
from tiny_audio.shards import Clip, Reject

NOISES = ("silence", "white noise", "brown noise")
SILENCE_S = (0.25, 4.0)  # shortest and longest of the silent clips
NOISE_PEAK = (10, 4000)  # quietest and loudest of the noisy ones, of 32,767


@dataclass
class WorkerBatch:
    """One worker's share of one step: its clips, shortest first, to be computed in `num_micro_batches` parts."""

    step: int
    epoch: int
    rank: int
    num_step_rows: int  # of all workers together, without silent clips that were added
    longest: int  # samples of the longest clip of the whole step, which all its clips are padded alike to
    num_micro_batches: int  # the same for all workers: they must meet in every collective
    clips: list[Clip]
    rejects: list[Reject] = field(default_factory=list)  # of the window; only its first batch carries them


def silent_clip(rng: np.random.Generator, name: str) -> Clip:
    """Digital silence, white noise or brown noise, with an empty label: what a recogniser must not hear words in."""
    num_samples = int(rng.uniform(*SILENCE_S) * SAMPLE_RATE)
    kind = NOISES[rng.integers(len(NOISES))]
    noise = rng.standard_normal(num_samples) * (kind != "silence")
    if kind == "brown noise":
        noise = np.cumsum(noise)
        noise -= noise.mean()
    peak = np.exp(rng.uniform(*np.log(NOISE_PEAK)))
    pcm = noise * peak / max(1e-9, float(np.abs(noise).max()))
    return Clip(name, pcm.astype(np.int16), text="", speaker=kind)


def _with_silence(clips: list[Clip], share: float, window: Window, rng: np.random.Generator) -> list[Clip]:
    count = round(len(clips) * share)
    return clips + [silent_clip(rng, f"silence-{window.epoch}-{window.index}-{i}") for i in range(count)]


def arrange_steps(clips: list[Clip], num_steps: int, rng: np.random.Generator) -> list[list[Clip]]:
    """Clips of like duration together, evenly over the steps, the steps in random order; each step shortest first."""
    order = rng.permutation(len(clips))
    order = order[np.argsort([len(clips[i].pcm) for i in order], kind="stable")]
    steps = [[clips[i] for i in part] for part in np.array_split(order, num_steps)]
    return [steps[i] for i in rng.permutation(num_steps)]


def num_micro_batches(num_rows: int, num_workers: int, padded_s: float, micro_batch_s: float) -> int:
    """Parts that the largest share of a step must be computed in, to keep each under `micro_batch_s` padded seconds."""
    share = -(-num_rows // num_workers)
    rows_at_once = max(1, int(micro_batch_s // padded_s))
    return max(1, -(-share // rows_at_once))


def deal(clips: list[Clip], num_workers: int) -> list[list[Clip]]:
    """Every worker's share of a step's clips: like cards, so that the shares' durations are alike."""
    return [clips[rank::num_workers] for rank in range(num_workers)]


def window_batches(
    window: Window,
    clips: list[Clip],
    rejects: list[Reject],
    *,
    seed: int,
    num_workers: int,
    micro_batch_s: float,
    window_s: float | None,
    silence_share: float = 0.0,
) -> list[WorkerBatch]:
    """All batches of a window: by step, within it by worker.

    Args:
        window_s: seconds that every clip is padded to (the encoder's window), or None for the step's longest.
    """
    rng = np.random.default_rng((seed, window.epoch, window.index))
    steps = arrange_steps(_with_silence(clips, silence_share, window, rng), window.num_steps, rng)
    batches = []
    for number, step_clips in enumerate(steps):
        longest = max((len(clip.pcm) for clip in step_clips), default=0)
        num_rows = sum(bool(clip.text) for clip in step_clips)
        padded_s = window_s or max(longest / SAMPLE_RATE, 1.0)
        parts = num_micro_batches(len(step_clips), num_workers, padded_s, micro_batch_s)
        for rank, share in enumerate(deal(step_clips, num_workers)):
            found = rejects if number == 0 and rank == 0 else []
            batches.append(WorkerBatch(window.first_step + number, window.epoch, rank, num_rows, longest, parts, share, found))
    return batches
