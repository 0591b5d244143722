"""LoquaciousSet mixes five corpora in one table without saying in a column which: the form of a row's ID does.

The forms of the first four were reported for all dev and test rows. An ID of YODAS ends in .wav; so may one of
People's Speech, which is told by the escapes that its own IDs have for slashes and dots.
"""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"\d+(-\d+)+")  # speaker-chapter-utterance


def source_of(row_id: str) -> str:
    """The corpus that a row comes from, to count and to score by.

    One of LoquaciousSet's: "voxpopuli", "commonvoice", "librispeech" (of LibriHeavy too: the same recordings and
    readers), "peoples_speech", "yodas". For other data, what the ID says before a last hyphen and a number
    ("voices-00017" is of "voices"), else "all".
    """
    if "PLENARY" in row_id:
        return "voxpopuli"
    if "common_voice" in row_id:
        return "commonvoice"
    if _NUMBERS.fullmatch(row_id):
        return "librispeech"
    if "_SLASH_" in row_id or "_DOT_" in row_id:
        return "peoples_speech"
    if row_id.endswith(".wav"):
        return "yodas"
    if row_id.endswith(".flac"):
        return "peoples_speech"
    name, _, number = row_id.rpartition("-")
    return name if name and number.isdigit() else "all"
