"""Word error rate with a 95 % confidence interval, computed from pairs of texts; jiwer aligns their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jiwer
import numpy as np

BOOTSTRAP_SAMPLES = 1000
CONFIDENCE = 0.95  # share of the bootstrap samples inside the interval


@dataclass(frozen=True)
class ErrorCount:
    """Counts the word errors of one utterance; a word transcribed in silence is an error too, over no words."""

    num_errors: int
    num_words: int


@dataclass(frozen=True)
class WordErrorRate:
    """Holds a WER, as a fraction, and its bootstrap interval over utterances (Bisani and Ney 2004)."""

    wer: float
    ci_low: float
    ci_high: float
    num_utterances: int
    num_words: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def normalize(text: str) -> str:
    """Reduces a text to what is compared: lower-case letters, digits, apostrophes and single spaces."""
    letters = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower())
    return " ".join(letters.split())


def count_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Counts the substitutions, deletions and insertions between the normalised texts."""
    reference, hypothesis = normalize(reference), normalize(hypothesis)
    if not reference:
        return ErrorCount(len(hypothesis.split()), 0)
    words = jiwer.process_words(reference, hypothesis)
    return ErrorCount(words.substitutions + words.deletions + words.insertions, len(reference.split()))


def word_error_rate(counts: Sequence[ErrorCount], seed: int = 0) -> WordErrorRate:
    """Computes the WER over all utterances together, and its interval by resampling utterances with `seed`.

    Raises:
        ValueError: the references hold no words.
    """
    errors = np.array([count.num_errors for count in counts], float)
    words = np.array([count.num_words for count in counts], float)
    if words.sum() == 0:
        raise ValueError("no words to compare: the references are empty")
    samples = np.random.default_rng(seed).integers(len(counts), size=(BOOTSTRAP_SAMPLES, len(counts)))  # utterance numbers
    rates = errors[samples].sum(axis=1) / np.maximum(words[samples].sum(axis=1), 1)
    low, high = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return WordErrorRate(errors.sum() / words.sum(), float(low), float(high), len(counts), int(words.sum()))
