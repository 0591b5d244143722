"""Word error rate with a 95 % confidence interval, per set of utterances. Pure Python over texts; jiwer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jiwer
import numpy as np

BOOTSTRAP_SAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ErrorCount:
    """Word errors of one utterance. A word heard in silence is an error too, over no words."""

    num_errors: int
    num_words: int


@dataclass(frozen=True)
class WordErrorRate:
    """A WER, as a fraction, and its bootstrap interval over utterances (Bisani and Ney 2004)."""

    wer: float
    ci_low: float
    ci_high: float
    num_utterances: int
    num_words: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def normalize(text: str) -> str:
    """What is compared: lower case, letters, digits and apostrophes, single spaces."""
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower())
    return " ".join(kept.split())


def count_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Substitutions, deletions and insertions between the normalised texts."""
    reference, hypothesis = normalize(reference), normalize(hypothesis)
    if not reference:
        return ErrorCount(len(hypothesis.split()), 0)
    words = jiwer.process_words(reference, hypothesis)
    return ErrorCount(words.substitutions + words.deletions + words.insertions, len(reference.split()))


def word_error_rate(counts: Sequence[ErrorCount], seed: int = 0) -> WordErrorRate:
    """WER over all utterances together, with the interval that resampling them gives.

    Raises:
        ValueError: there are no reference words to count against.
    """
    errors = np.array([count.num_errors for count in counts], float)
    words = np.array([count.num_words for count in counts], float)
    if words.sum() == 0:
        raise ValueError("no words to compare: the references are empty")
    drawn = np.random.default_rng(seed).integers(len(counts), size=(BOOTSTRAP_SAMPLES, len(counts)))
    rates = errors[drawn].sum(axis=1) / np.maximum(words[drawn].sum(axis=1), 1)
    low, high = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return WordErrorRate(errors.sum() / words.sum(), float(low), float(high), len(counts), int(words.sum()))
