"""Evaluation: test shards -> transcripts on a pool of actors -> WER per set, with controls that must fail.

Writes utterances.jsonl and evaluation.json into the output folder. A set is a source of rows (see
data/sources.py).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.config import absolute_data, require
from tiny_audio.counts import count_reject, rejects_line
from tiny_audio.data.batch import SILENCE, silent_clip
from tiny_audio.data.footers import read_dataset
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.stream import clip_dataset, memory_dataset
from tiny_audio.evaluation.config import EvaluateConfig
from tiny_audio.evaluation.wer import (
    ErrorCount,
    count_char_errors,
    count_errors,
    loops,
    normalize,
    normalize_english,
    normalizer_names,
    word_error_rate,
)
from tiny_audio.inference.hearing import DOUBTFUL, disagreement
from tiny_audio.inference.pool import TranscribeSettings, transcribed_rows
from tiny_audio.model.window import read_model_window_s
from tiny_audio.storage import output_path, require_model

NUM_SILENT_CLIPS = 12
NUM_DOUBTFUL_LABELS = 50  # of the worst, in evaluation.json
SETS = {  # set -> its label and note on the report page
    "sentences": ("unseen sentences", "not used to train the projector; spoken by its training voices"),
    "voices": ("unseen voices", "unseen sentences, spoken by voices that no training used"),
    "words": ("unseen words", "each sentence has a word that occurs in no training text, the backbones' included"),
}


def score_row(row: dict) -> dict:
    """Turns a transcribed row into a line of utterances.jsonl.

    `reference` and `hypothesis` are normalised; `text` and `pred_text`, as manifests of NeMo and of the Open ASR Leaderboard
    name them, are as they were, for other scorers.
    """
    texts = row["text"], row["hypothesis"]
    count, plain, chars = count_errors(*texts), count_errors(*texts, normalize), count_char_errors(*texts)
    return {
        "id": row["id"],
        "set": row["source"],
        "reference": normalize_english(row["text"]),
        "hypothesis": normalize_english(row["hypothesis"]),
        "text": row["text"],
        "pred_text": row["hypothesis"],
        "num_errors": count.num_errors,
        "num_words": count.num_words,
        "plain_errors": plain.num_errors,
        "plain_words": plain.num_words,
        "char_errors": chars.num_errors,
        "num_chars": chars.num_words,
        "loops": loops(*texts),
        "duration_s": row["num_samples"] / SAMPLE_RATE,
        "speaker": row["speaker"],
        "complete": row["complete"],
        "looped": row["looped"],
        "doubtful": row["doubtful"],
        "heard": row["heard"],
        "label_disagreement": None if row["heard"] is None else disagreement(row["text"], row["heard"]),
        "words": row["words"],
    }


def second_opinion(utterances: list[dict]) -> dict | None:
    """Sums up what the CTC head makes of texts and of labels; None where the model has none.

    A label is doubtful by the encoder's own hearing, whatever the decoder wrote. The worst come first.
    """
    measured = [line for line in utterances if line["label_disagreement"] is not None]
    if not measured:
        return None
    worst = sorted(measured, key=lambda line: (-line["label_disagreement"], line["id"]))
    labels = [line for line in worst if line["label_disagreement"] > DOUBTFUL]
    keys = ("id", "label_disagreement", "text", "heard")
    return {
        "num_utterances": len(measured),
        "num_doubtful_texts": sum(line["doubtful"] for line in measured),
        "num_doubtful_labels": len(labels),
        "doubtful_labels": [{key: line[key] for key in keys} for line in labels[:NUM_DOUBTFUL_LABELS]],
    }


def _score(utterances: list[dict], label: str, note: str) -> dict:
    counts = [ErrorCount(line["num_errors"], line["num_words"]) for line in utterances]
    return {**word_error_rate(counts).as_dict(), "label": label, "note": note}


def _share(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))


def _rates(utterances: list[dict], label: str, note: str) -> dict:
    """Computes the headline WER with its interval, and beside it the plain WER, the CER and the rate of loops.

    `unguarded_loop_rate` is the rate as it were if no text had been written again from where it looped.
    """
    rate = lambda errors, of: sum(line[errors] for line in utterances) / max(1, sum(line[of] for line in utterances))  # noqa: E731
    return {
        **_score(utterances, label, note),
        "wer_plain": rate("plain_errors", "plain_words"),
        "cer": rate("char_errors", "num_chars"),
        "loop_rate": _share(line["loops"] or not line["complete"] for line in utterances),
        "unguarded_loop_rate": _share(line["loops"] or not line["complete"] or line["looped"] for line in utterances),
    }


def score_silence(silent: list[dict]) -> dict[str, float]:
    """Measures the words transcribed from silence: the share of clips that have some, and the words a minute."""
    words = [len(line["hypothesis"].split()) for line in silent]
    minutes = sum(line["duration_s"] for line in silent) / 60
    return {"clips_with_words": sum(map(bool, words)) / len(words), "words_per_minute": sum(words) / minutes}


def score_sets(utterances: list[dict]) -> dict[str, dict]:
    """Computes the WER of every set, in the order of their first utterances."""
    sets = {}
    for name in dict.fromkeys(line["set"] for line in utterances if line["num_words"]):
        label, note = SETS.get(name, (name, ""))
        sets[name] = _rates([line for line in utterances if line["set"] == name], label, note)
    return sets


def shuffle_audio(utterances: list[dict]) -> list[dict]:
    """Scores every reference against the next row's transcript: a model that listens does no better here than by guessing."""
    next_utterances = utterances[1:] + utterances[:1]
    shuffled = []
    for line, next_line in zip(utterances, next_utterances, strict=True):
        count = count_errors(line["text"], next_line["pred_text"])
        shuffled.append({**line, "num_errors": count.num_errors, "num_words": count.num_words})
    return shuffled


def silent_clips(seed: int, max_duration_s: float) -> list[Clip]:
    """Makes clips of digital silence, white noise and brown noise, from other seeds than training's."""
    rng = np.random.default_rng((seed, 2**20))
    clips = [silent_clip(rng, f"{SILENCE}-{i:02d}") for i in range(NUM_SILENT_CLIPS)]
    return [replace(clip, pcm=clip.pcm[: int(max_duration_s * SAMPLE_RATE)]) for clip in clips]


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _count_rejects(rows: list[dict]) -> dict[str, dict[str, int]]:
    rejected: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["reason"]:
            count_reject(rejected, row["source"], row["reason"])
    return rejected


def _untrained_score(config: EvaluateConfig, max_duration_s: float) -> dict:
    groups = read_dataset(absolute_data(config.data), config.control_rows, columns=config.columns)
    clips = clip_dataset(plan_pass(groups), max_duration_s, config.columns)
    rows = transcribed_rows(clips, TranscribeSettings.of(config, untrained_seed=config.seed))
    lines = [score_row(row) for row in rows if not row["reason"]]
    note = f"the same model with a fresh projector; the first {len(lines)} utterances"
    return _score(lines, "untrained projector", note)


def evaluate(
    config: EvaluateConfig, show_progress: Callable[[Iterable, int], Iterable], start_ray: Callable[[], None] = lambda: None
) -> dict:
    """Scores a model on a test set and on the controls; returns the contents of evaluation.json.

    Args:
        show_progress: wraps the iterable of transcribed rows; its second argument is their number.
        start_ray: starts Ray, once all inputs are checked; not needed if Ray is up already.

    Raises:
        ConfigError: the model or the shards do not exist, or none of their rows can be scored.
    """
    max_duration_s = read_model_window_s(require_model(config.model))
    output_dir = output_path(config.output_dir)
    groups = read_dataset(absolute_data(config.data), config.max_rows, columns=config.columns, warn_of_size=_warn)
    start_ray()
    clips = clip_dataset(plan_pass(groups), max_duration_s, config.columns)
    if config.control_rows:
        clips = clips.union(memory_dataset(silent_clips(config.seed, max_duration_s)))
    start_s = time.perf_counter()
    num_rows = sum(group.num_rows for group in groups)
    rows = list(show_progress(transcribed_rows(clips, TranscribeSettings.of(config, with_words=True)), num_rows))
    duration_s = time.perf_counter() - start_s
    rejected = _count_rejects(rows)
    lines = sorted((score_row(row) for row in rows if not row["reason"]), key=lambda line: line["id"])
    utterances = [line for line in lines if line["set"] != SILENCE]
    require(
        any(line["num_words"] for line in utterances),
        f"{config.data}: no row could be scored; rejected: {rejects_line(rejected)}",
    )
    overall = _rates(utterances, "overall", "all sets together")
    result = {"normalizers": normalizer_names(), "overall": overall, "sets": score_sets(utterances), "controls": {}}
    result |= {"silence": [], "rejected": rejected, "second_opinion": second_opinion(utterances)}
    if config.control_rows:
        shuffled = _score(shuffle_audio(utterances), "shuffled audio", "every reference against another row's audio")
        result["controls"] = {"untrained": _untrained_score(config, max_duration_s), "shuffled_audio": shuffled}
        result["silence"] = [
            {"name": f"{line['speaker']}, {line['duration_s']:.1f} s", "text": line["hypothesis"]}
            for line in lines
            if line["set"] == SILENCE
        ]
        result["silence_rates"] = score_silence([line for line in lines if line["set"] == SILENCE])
    result["rtfx"] = sum(line["duration_s"] for line in utterances) / duration_s
    _write(output_dir, utterances, result)
    return result


def _write(folder: Path, utterances: list[dict], result: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utterances.jsonl").write_text("".join(json.dumps(line) + "\n" for line in utterances))
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
