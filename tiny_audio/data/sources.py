"""The source of a row. LoquaciousSet mixes five corpora in one table with no column for it; the form of a row's ID tells.

The forms of the first four were reported for all dev and test rows. IDs of YODAS end in .wav; those of People's Speech may
too, but are recognized by their escapes for slashes and dots.
"""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"\d+(-\d+)+")  # speaker-chapter-utterance


def source_of(row_id: str) -> str:
    """Returns the corpus that a row comes from, by which rows are counted, weighted and scored.

    It is one of LoquaciousSet's: "voxpopuli", "commonvoice", "librispeech" (also for LibriHeavy, which has the same
    recordings and readers), "peoples_speech", "yodas". For other data it is the part of the ID before a last hyphen and a
    number ("voices-00017" comes from "voices"), else "all".
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
