"""Evaluation: test shards -> transcripts on a pool of actors -> WER per set, with controls that must fail.

Writes utterances.jsonl and evaluation.json into the output folder. A set is a source of
rows, as its ID tells it (see `loquacious.py`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.config import absolute_data, output_path, require, require_at_least, require_model
from tiny_audio.counts import count_reject, rejects_line
from tiny_audio.data.batch import SILENCE, silent_clip
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.sources import source_of
from tiny_audio.data.stream import clip_dataset, memory_dataset
from tiny_audio.evaluation.wer import ErrorCount, count_errors, normalize, word_error_rate
from tiny_audio.inference.pool import TranscribeSettings, transcribe_dataset
from tiny_audio.model.saved import read_model_window_s

NUM_SILENT_CLIPS = 12
SETS = {
    "sentences": ("unseen sentences", "in no projector training; said by its voices"),
    "voices": ("unseen voices", "unseen sentences, said by voices that no training heard"),
    "words": ("unseen words", "each sentence has a word that no training text held, the backbones' included"),
}


@dataclass
class EvaluateConfig:
    """What to score, and on what."""

    model: str = "runs/quickstart/model"  # a folder that training exported, or a hub id
    data: str = "data/synthetic/test/*.parquet"  # a glob, or DATASET:CONFIG:SPLIT, see DataConfig
    output_dir: str = "runs/evaluation"
    max_rows: int | None = None
    num_actors: int = 1
    use_gpu: bool = False
    num_threads: int = field(default_factory=lambda: os.cpu_count() or 1)  # CPU threads of an actor, without a GPU
    batch_rows: int = 64
    control_rows: int = 100  # that a fresh projector is scored on; 0 leaves the controls out
    seed: int = 0

    def __post_init__(self):
        require_at_least(self, 1, "max_rows", "num_actors", "num_threads", "batch_rows")
        require_at_least(self, 0, "control_rows", "seed")

    def settings(self, untrained: bool = False) -> TranscribeSettings:
        return TranscribeSettings(
            model=require_model(self.model),
            num_actors=self.num_actors,
            use_gpu=self.use_gpu,
            num_threads=self.num_threads,
            batch_rows=self.batch_rows,
            untrained_seed=self.seed if untrained else None,
        )


def score_row(row: dict) -> dict:
    """A transcribed row as a line of utterances.jsonl."""
    count = count_errors(row["text"], row["hypothesis"])
    return {
        "id": row["id"],
        "set": source_of(row["id"]),
        "reference": normalize(row["text"]),
        "hypothesis": normalize(row["hypothesis"]),
        "num_errors": count.num_errors,
        "num_words": count.num_words,
        "duration_s": row["num_samples"] / SAMPLE_RATE,
        "speaker": row["speaker"],
        "complete": row["complete"],
        "looped": row["looped"],
    }


def _score(utterances: list[dict], label: str, note: str) -> dict:
    counts = [ErrorCount(line["num_errors"], line["num_words"]) for line in utterances]
    return {**word_error_rate(counts).as_dict(), "label": label, "note": note}


def score_sets(utterances: list[dict]) -> dict[str, dict]:
    """WER of every set, in the order in which they come."""
    sets = {}
    for name in dict.fromkeys(line["set"] for line in utterances if line["num_words"]):
        label, note = SETS.get(name, (name, ""))
        sets[name] = _score([line for line in utterances if line["set"] == name], label, note)
    return sets


def shuffle_audio(utterances: list[dict]) -> list[dict]:
    """Every reference beside what was heard in the next row's audio: no better than guessing, if it listens at all."""
    shifted = utterances[1:] + utterances[:1]
    moved = []
    for line, other in zip(utterances, shifted, strict=True):
        count = count_errors(line["reference"], other["hypothesis"])
        moved.append({**line, "num_errors": count.num_errors, "num_words": count.num_words})
    return moved


def silent_clips(seed: int, max_duration_s: float) -> list[Clip]:
    """Digital silence, white and brown noise, of other seeds than training's."""
    rng = np.random.default_rng((seed, 2**20))
    clips = [silent_clip(rng, f"{SILENCE}-{i:02d}") for i in range(NUM_SILENT_CLIPS)]
    return [replace(clip, pcm=clip.pcm[: int(max_duration_s * SAMPLE_RATE)]) for clip in clips]


def _count_rejects(rows: list[dict]) -> dict[str, dict[str, int]]:
    rejected: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["reason"]:
            count_reject(rejected, source_of(row["id"]), row["reason"])
    return rejected


def _untrained_score(config: EvaluateConfig, max_duration_s: float) -> dict:
    groups = read_footers(list_shards(absolute_data(config.data)), config.control_rows)
    clips = clip_dataset(plan_pass(groups), max_duration_s)
    rows = transcribe_dataset(clips, config.settings(untrained=True)).iter_rows()
    lines = [score_row(row) for row in rows if not row["reason"]]
    return _score(lines, "untrained projector", f"the same model, its projector fresh; the first {len(lines)} utterances")


def evaluate(
    config: EvaluateConfig, show_progress: Callable[[Iterable, int], Iterable], start_ray: Callable[[], None] = lambda: None
) -> dict:
    """Scores a model; returns what evaluation.json says.

    Args:
        show_progress: wraps the iterable of transcribed rows, whose number it is told.
        start_ray: called once all inputs are checked, unless Ray is up already.

    Raises:
        ConfigError: no such model or shards, or none of their rows can be scored.
    """
    max_duration_s = read_model_window_s(require_model(config.model))
    output_dir = output_path(config.output_dir)
    groups = read_footers(list_shards(absolute_data(config.data)), config.max_rows)
    start_ray()
    spoken = clip_dataset(plan_pass(groups), max_duration_s)
    silent = memory_dataset(silent_clips(config.seed, max_duration_s)) if config.control_rows else None
    clips = spoken.union(silent) if silent else spoken
    started = time.perf_counter()
    num_rows = sum(group.num_rows for group in groups)
    rows = list(show_progress(transcribe_dataset(clips, config.settings()).iter_rows(), num_rows))
    seconds = time.perf_counter() - started
    rejected = _count_rejects(rows)
    heard = sorted((score_row(row) for row in rows if not row["reason"]), key=lambda line: line["id"])
    utterances = [line for line in heard if line["set"] != SILENCE]
    require(
        any(line["num_words"] for line in utterances),
        f"{config.data}: no row could be scored; rejected: {rejects_line(rejected)}",
    )
    result = {"sets": score_sets(utterances), "controls": {}, "silence": [], "rejected": rejected}
    if config.control_rows:
        shuffled = _score(shuffle_audio(utterances), "shuffled audio", "every reference against another row's audio")
        result["controls"] = {"untrained": _untrained_score(config, max_duration_s), "shuffled_audio": shuffled}
        result["silence"] = [
            {"name": f"{line['speaker']}, {line['duration_s']:.1f} s", "text": line["hypothesis"]}
            for line in heard
            if line["set"] == SILENCE
        ]
    result["rtfx"] = sum(line["duration_s"] for line in utterances) / seconds
    _write(output_dir, utterances, result)
    return result


def _write(folder: Path, utterances: list[dict], result: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utterances.jsonl").write_text("".join(json.dumps(line) + "\n" for line in utterances))
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
