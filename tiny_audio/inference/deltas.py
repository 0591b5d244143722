"""Turns the tokens of a transcript into text while they come."""

from __future__ import annotations

from collections.abc import Iterable

from tiny_audio.model.prompt import clean_transcript

UNFINISHED = "\ufffd"  # what tokenizers write for bytes that are no whole character yet


class Deltas:
    """Gives out a transcript piece by piece; all pieces joined are its text, so far as it is known.

    A piece ends at a whole character, and spaces come with the word behind them.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""  # given out so far

    def add(self, ids: Iterable[int]) -> str:
        """Takes the next token ids; returns the text that they add, "" if there is none yet."""
        self.ids += ids
        text = clean_transcript(self.tokenizer.decode(self.ids, skip_special_tokens=True).rstrip(UNFINISHED))
        return self.rest(text) if text.startswith(self.text) else ""

    def rest(self, text: str) -> str:
        """Returns what the whole text adds to the pieces before."""
        delta = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += delta
        return delta
