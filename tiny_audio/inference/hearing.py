"""What a CTC head hears, and what its letters tell of a text: when each of its words was said, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import jiwer
import torch
from torch import nn
from torch.nn.functional import pad
from torchaudio.functional import forced_align, merge_tokens

from tiny_audio.audio.clip import SAMPLE_RATE, SAMPLES_PER_ENCODER_FRAME
from tiny_audio.inference.words import Word
from tiny_audio.model.ctc_head import BLANK, NUM_CLASSES, SPACE, letter_log_probs, spelled, spoken

FRAME_S = SAMPLES_PER_ENCODER_FRAME / SAMPLE_RATE
ANYTHING = NUM_CLASSES  # a further class, as likely as can be: it stands for a word that the alphabet cannot spell
LETTER_DELAY_S = 0.02  # CTC tells a letter once it is under way: 10 to 30 ms after its beginning, at the median
FEW_LETTERS = 3
DOUBTFUL = 0.65  # disagreement from which on a text is doubtful: on people that of right texts is below, that of others above


def hear(head: nn.Module | None, frames: torch.Tensor, num_frames: list[int]) -> Sequence[torch.Tensor | None]:
    """Computes what a CTC head hears in clips; starts to copy it to the host, where it is when the device has come as far.

    Args:
        head: the model's, if it has one.
        frames: (frames, C) encoder frames, clips end to end.
        num_frames: those of each clip.

    Returns:
        (E, NUM_CLASSES) log-probabilities for each clip; None where there is no head.
    """
    if head is None:
        return [None] * len(num_frames)
    letters = letter_log_probs(head, frames)
    if letters.is_cuda:
        letters = torch.empty(letters.shape, dtype=letters.dtype, pin_memory=True).copy_(letters, non_blocking=True)
    return letters.split(num_frames)


def align_words(text: str, letters: torch.Tensor) -> list[Word] | None:
    """Finds when each word of a text was said, by the most likely path of its letters through the clip.

    A word without letters, such as 42, is taken to fill the time between its neighbours.

    Args:
        text: what the clip says, words between white space.
        letters: (E, NUM_CLASSES) log-probabilities of the clip's encoder frames, of `letter_log_probs`.

    Returns:
        A word for each, in order; None where no word has letters of the alphabet, or there are more letters than frames.
    """
    words = text.split()
    spellings = [spelled(spoken(word)) or [ANYTHING] for word in words]
    path = [token for spelling in spellings for token in (*spelling, SPACE)][:-1]
    num_steps = len(path) + sum(token == following for token, following in pairwise(path))
    if all(spelling == [ANYTHING] for spelling in spellings) or num_steps > len(letters):
        return [] if not words else None
    scores = pad(letters, (0, 1))[None]
    tokens, token_scores = forced_align(scores, torch.tensor([path], dtype=torch.int32), blank=BLANK)
    spans = merge_tokens(tokens[0], token_scores[0], blank=BLANK)
    firsts = [0, *accumulate(len(spelling) + 1 for spelling in spellings)]
    starts_s = [max(0.0, spans[first].start * FRAME_S - LETTER_DELAY_S) for first in firsts[:-1]]
    gaps_s = [spans[first - 1].start * FRAME_S for first in firsts[1:-1]]  # where the space behind a word is heard
    ends_s = [*map(min, gaps_s, starts_s[1:]), spans[-1].end * FRAME_S]
    return [Word(*word) for word in zip(words, starts_s, ends_s, strict=True)]


def disagreement(text: str, heard: str) -> float | None:
    """Measures how far a text is from the letters that were heard: 0 where they are alike, 1 where nothing is, or one is silent.

    It is their edit distance as a share of the longer one, or of FEW_LETTERS: noise may sound like a letter. None where the
    text has words, and no letter of the alphabet.
    """
    said = spoken(text)
    if text.strip() and not said:
        return None
    longest = max(len(said), len(heard), FEW_LETTERS)
    if not said or not heard:
        return (len(said) + len(heard)) / longest
    edits = jiwer.process_characters(said, heard)
    return (edits.substitutions + edits.deletions + edits.insertions) / longest
