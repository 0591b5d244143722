"""Sees where a text begins to repeat itself: a decoder that has lost the audio says one phrase over and over."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PHRASE = 16  # tokens
LOOP_REPEATS = 4  # a phrase said so often in a row may be a loop


def _num_repeated(ids: Sequence[int], period: int) -> int:
    """Counts the ids at the end that are each as the one a period before."""
    num = 0
    while num < len(ids) - period and ids[-1 - num] == ids[-1 - num - period]:
        num += 1
    return num


def num_repeated(ids: Sequence[int]) -> int:
    """Counts the ids at the end that repeat what comes just before them, and may go on to be a loop."""
    return max((_num_repeated(ids, period) for period in range(1, LONGEST_PHRASE + 1)), default=0)


def loop_start(ids: Sequence[int], num_tokens: int) -> int | None:
    """Finds where a text begins to repeat the phrase that it now says over and over: the place of the phrase's second time.

    None if it repeats no phrase at its end, at least four times and over at least `num_tokens` ids.
    """
    for period in range(1, LONGEST_PHRASE + 1):
        num = _num_repeated(ids, period)
        if num + period >= max(num_tokens, LOOP_REPEATS * period):
            return len(ids) - num
    return None
