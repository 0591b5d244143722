"""A word of a text, and when it was said. It stands apart from what finds the times, which wants torch."""

from __future__ import annotations

from typing import NamedTuple


class Word(NamedTuple):
    """Holds a word as the text has it, and when it was said, in seconds from the beginning of the clip or recording."""

    text: str
    start_s: float
    end_s: float

    def later(self, offset_s: float) -> Word:
        """Returns the word of a recording in which the clip begins at `offset_s`."""
        return Word(self.text, self.start_s + offset_s, self.end_s + offset_s)
