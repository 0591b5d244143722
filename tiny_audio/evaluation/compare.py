"""Compares two evaluations of the same utterances: which is better, by how much, and where they differ.

The method is a paired bootstrap (Bisani and Ney 2004). It resamples utterances together with both models' errors, so an
utterance that is hard for both does not blur the difference between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiny_audio.config import require
from tiny_audio.evaluation.wer import BOOTSTRAP_SAMPLES, CONFIDENCE, count_errors, normalizer_names

MOST_DIFFERENT = 12
Line = dict[str, Any]


def read_utterances(folder: Path) -> dict[str, Line]:
    """Reads the lines of a folder's utterances.jsonl by ID.

    Raises:
        ConfigError: the folder has no utterances.jsonl.
    """
    path = Path(folder) / "utterances.jsonl"
    require(path.is_file(), f"{folder}: no utterances.jsonl here; python -m ray_jobs.evaluate writes it")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["id"]: line for line in lines}


def paired_difference(a: Sequence[int], b: Sequence[int], num_words: Sequence[int], seed: int = 0) -> dict[str, float]:
    """Computes WER of B minus WER of A, its 95 % interval and the share of resamples in which B is better.

    Args:
        a, b: errors of each utterance.
        num_words: words of each utterance's reference.
    """
    errors, words = np.array([a, b], float), np.array(num_words, float)
    drawn = np.random.default_rng(seed).integers(len(words), size=(BOOTSTRAP_SAMPLES, len(words)))
    differences = (errors[1] - errors[0])[drawn].sum(axis=1) / np.maximum(words[drawn].sum(axis=1), 1)
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    wer_a, wer_b = errors.sum(axis=1) / max(1.0, words.sum())
    return {
        "wer_a": float(wer_a),
        "wer_b": float(wer_b),
        "difference": float(wer_b - wer_a),
        "ci_low": float(low),
        "ci_high": float(high),
        "b_better": float((differences < 0).mean()),
        "num_utterances": len(words),
        "num_words": int(words.sum()),
    }


def _pair(a: Line, b: Line) -> Line:
    count_a, count_b = (count_errors(a["reference"], line["hypothesis"]) for line in (a, b))
    return {
        "id": a["id"],
        "set": a["set"],
        "reference": a["reference"],
        "hypothesis_a": a["hypothesis"],
        "hypothesis_b": b["hypothesis"],
        "errors_a": count_a.num_errors,
        "errors_b": count_b.num_errors,
        "num_words": count_a.num_words,
    }


def _score(pairs: list[Line]) -> dict[str, float]:
    columns = ([pair[key] for pair in pairs] for key in ("errors_a", "errors_b", "num_words"))
    return paired_difference(*columns)


def compare(folder_a: Path, folder_b: Path) -> dict[str, Any]:
    """Compares two evaluations by their utterances.jsonl, overall and per test set.

    Raises:
        ConfigError: a folder has no utterances.jsonl, or the two have no scored utterance in common.
    """
    a, b = read_utterances(folder_a), read_utterances(folder_b)
    pairs = [_pair(a[name], b[name]) for name in sorted(a.keys() & b.keys())]
    require(any(pair["num_words"] for pair in pairs), f"{folder_a} and {folder_b} have no scored utterance in common")
    sets = {name: [pair for pair in pairs if pair["set"] == name] for name in dict.fromkeys(pair["set"] for pair in pairs)}
    different = [pair for pair in pairs if pair["errors_a"] != pair["errors_b"]]
    different.sort(key=lambda pair: (-abs(pair["errors_b"] - pair["errors_a"]), pair["id"]))
    return {
        "a": str(folder_a),
        "b": str(folder_b),
        "normalizer": normalizer_names()["headline"],
        "overall": _score(pairs),
        "sets": {name: _score(part) for name, part in sets.items() if any(pair["num_words"] for pair in part)},
        "only_in_a": len(a.keys() - b.keys()),
        "only_in_b": len(b.keys() - a.keys()),
        "most_different": different[:MOST_DIFFERENT],
    }
