"""Word and character error rates with 95 % confidence intervals, computed from pairs of texts; jiwer aligns their words.

The headline is the WER of texts as Whisper's English normaliser writes them (Radford et al. 2022, appendix C), the
convention of the field and, for its first years, of the Open ASR Leaderboard: "twenty-five" is "25", "colour" "color",
"won't" "will not", "um" nothing. The plain WER beside it only lowers the case and drops the punctuation. Its spelling table is
OpenAI's (github.com/openai/whisper, c0d2f62, MIT licence).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jiwer
import numpy as np

BOOTSTRAP_SAMPLES = 1000
CONFIDENCE = 0.95  # share of the bootstrap samples inside the interval
QUOTES = str.maketrans({"‘": "'", "’": "'", "ʼ": "'", "‛": "'", "′": "'", "`": "'", "´": "'", "“": '"', "”": '"', "„": '"'})
LOOP_REPEATS = 4  # of a phrase, one after the other
LOOP_WORDS = 8  # length of the longest phrase that is looked for


@dataclass(frozen=True)
class ErrorCount:
    """Counts the errors of one utterance, in words or in characters; a word transcribed in silence is an error over no words."""

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


def fold_unicode(text: str) -> str:
    """Gives characters that look the same one form: NFKC, straight quotes, nothing invisible."""
    folded = unicodedata.normalize("NFKC", text.translate(QUOTES))
    return "".join(char for char in folded if unicodedata.category(char) != "Cf")


def normalize(text: str) -> str:
    """Reduces a text to lower-case letters, digits, apostrophes and single spaces: the plain normaliser."""
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in fold_unicode(text).lower())
    return " ".join(kept.split())


@cache
def _whisper_normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer  # 1 s, which --help does without

    return EnglishTextNormalizer(json.loads(Path(__file__).with_name("whisper_spelling.json").read_text(encoding="utf-8")))


def normalize_english(text: str) -> str:
    """Applies Whisper's English normaliser to folded Unicode: the headline's."""
    return _whisper_normalizer()(fold_unicode(text)).strip()


def normalizer_names() -> dict[str, str]:
    """Names the two normalisers with their versions, for reports."""
    return {
        "headline": f"Whisper English (transformers {version('transformers')})",
        "plain": "plain 1 (lower case, no punctuation)",
    }


def count_errors(reference: str, hypothesis: str, normalizer: Callable[[str], str] = normalize_english) -> ErrorCount:
    """Counts the substitutions, deletions and insertions of words between the normalised texts."""
    reference, hypothesis = normalizer(reference), normalizer(hypothesis)
    if not reference:
        return ErrorCount(len(hypothesis.split()), 0)
    words = jiwer.process_words(reference, hypothesis)
    return ErrorCount(words.substitutions + words.deletions + words.insertions, len(reference.split()))


def count_char_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Counts errors as `count_errors` does for the headline, but in characters, spaces included."""
    reference, hypothesis = normalize_english(reference), normalize_english(hypothesis)
    if not reference:
        return ErrorCount(len(hypothesis), 0)
    chars = jiwer.process_characters(reference, hypothesis)
    return ErrorCount(chars.substitutions + chars.deletions + chars.insertions, len(reference))


def loops(reference: str, hypothesis: str) -> bool:
    """Whether a phrase comes at least four times in a row in the hypothesis, and not in the reference."""
    return _repeats(normalize(hypothesis).split()) and not _repeats(normalize(reference).split())


def _repeats(words: list[str]) -> bool:
    for size in range(1, LOOP_WORDS + 1):
        equal = 0  # words in a row, each as the one a phrase before
        for word, earlier in zip(words[size:], words, strict=False):
            equal = equal + 1 if word == earlier else 0
            if equal >= size * (LOOP_REPEATS - 1):
                return True
    return False


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
