"""Labels as they are trained and scored: without markup, with single spaces and, on request, in the case of written English.

LoquaciousSet's text has neither case nor punctuation. Case can be restored roughly, and without a model: a capital at
the start, the pronoun "I", and names as a text of the user's own spells them. Punctuation is not restored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import fsspec

from tiny_audio.config import DataConfig, require

_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")  # <unk>, <noise>, [laughter], [background noise]
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_APOSTROPHE = re.compile(r"['’]")
_SENTENCE_ENDS = tuple(".?!")
LABEL_CHARS_PER_S = 25  # speech has about 14, fast speech 20
SPARE_LABEL_CHARS = 50  # for clips that were trimmed tightly
MIN_SIGHTINGS = 2  # a form that was seen once may be a slip


def clean_label(text: str) -> str:
    """Drops markup and extra spaces; returns "" if neither a letter nor a digit is left."""
    label = " ".join(_MARKUP.sub(" ", text).split())
    return label if any(c.isalnum() for c in label) else ""


def max_label_chars(duration_s: float) -> float:
    """The longest label that a clip can have: a longer one belongs to other audio, and its memory would have no bound."""
    return SPARE_LABEL_CHARS + LABEL_CHARS_PER_S * duration_s


def _starts_sentence(before: str) -> bool:
    return not before or before.endswith(_SENTENCE_ENDS)


def learn_names(lines: Iterable[str]) -> dict[str, str]:
    """Maps lower-case words to their usual form, for the words that are mostly capitalized inside sentences.

    The first word of a line or sentence tells nothing about its case, and neither does a line without lower-case letters.
    """
    forms: dict[str, Counter[str]] = {}
    for line in lines:
        if line == line.upper():
            continue
        for match in _WORD.finditer(line):
            if not _starts_sentence(line[: match.start()].rstrip(" \t\"'“‘(")):
                forms.setdefault(match.group().lower(), Counter())[match.group()] += 1
    names = {}
    for word, counts in forms.items():
        form, count = counts.most_common(1)[0]
        if form != word and count >= MIN_SIGHTINGS and 2 * count > counts.total():
            names[word] = form
    return names


@dataclass(frozen=True)
class Truecaser:
    """Gives text of one case the case of written English, with the `names` that `learn_names` found."""

    names: dict[str, str] = field(default_factory=dict)
    learned_from: str = ""  # the path or URL of their text

    def __call__(self, text: str) -> str:
        """Leaves text that has both cases alone."""
        if text not in (text.lower(), text.upper()):
            return text
        words, start = [], True
        for word in text.lower().split():
            cased = _WORD.sub(self._case, word)
            words.append(_capitalize(cased) if start else cased)
            start = word.endswith(_SENTENCE_ENDS)
        return " ".join(words)

    def _case(self, match: re.Match[str]) -> str:
        word = match.group()
        stem = _APOSTROPHE.split(word)[0]
        rest = word[len(stem) :]
        if stem == "i" and rest[1:] in ("", "m", "ll", "ve", "d"):
            return "I" + rest
        return self.names.get(word) or self.names.get(stem, stem) + rest


def _capitalize(word: str) -> str:
    """Makes 'Tis of 'tis; leaves a word that begins with a digit, or has a capital already."""
    first = next((i for i, c in enumerate(word) if c.isalnum()), None)
    if first is None or word != word.lower():
        return word
    return word[:first] + word[first].upper() + word[first + 1 :]


def make_truecaser(data: DataConfig) -> Truecaser | None:
    """Makes what `data.truecase` asks for; None leaves the case as it is.

    Raises:
        ConfigError: `data.truecase_text` cannot be read.
    """
    if not data.truecase or data.truecase_text is None:
        return Truecaser() if data.truecase else None
    filesystem, path = fsspec.core.url_to_fs(data.truecase_text)
    require(filesystem.isfile(path), f"data.truecase_text={data.truecase_text}: no such text file")
    with filesystem.open(path, "rt", encoding="utf-8", errors="replace") as file:
        return Truecaser(learn_names(file), learned_from=data.truecase_text)
