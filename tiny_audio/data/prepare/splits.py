"""Chooses the rows for training, validation and test, by speaker, so that no voice is in two of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

from tiny_audio.data.prepare.entries import Entry


def _order(key: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()


def _draw(counts: Counter[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Draws groups of rows for each split until it has its share of the rows, at least one group; the rest is left."""
    order, splits = sorted(counts, key=lambda key: _order(key, seed)), {}
    for split, share in shares.items():
        wanted = share * counts.total()
        for key in order:
            if key not in splits and counts[key] <= wanted:
                splits[key] = split
                wanted -= counts[key]
        if split not in splits.values():
            splits[min((key for key in order if key not in splits), key=counts.__getitem__)] = split
    return splits


def assign_splits(entries: list[Entry], dev_share: float, test_share: float, seed: int) -> tuple[list[Entry], str]:
    """Gives every row a split, and says in a line how: as the input has it, else by speaker, else by file.

    Args:
        dev_share: the share of the rows for dev; 0 makes no dev split. `test_share` works likewise.
    """
    if len({entry.split for entry in entries} - {""}) > 1:
        return [replace(entry, split=entry.split or "train") for entry in entries], "splits: the input's own"
    shares = {split: share for split, share in (("dev", dev_share), ("test", test_share)) if share}
    speakers = {entry.speaker for entry in entries} - {""}
    by_speaker = len(speakers) > len(shares)
    counts = Counter(entry.speaker or entry.id if by_speaker else entry.id for entry in entries)
    if len(counts) <= len(shares):
        return [replace(entry, split="train") for entry in entries], f"splits: none, all of {len(entries)} rows train"
    drawn = _draw(counts, shares, seed)
    keys = (entry.speaker or entry.id if by_speaker else entry.id for entry in entries)
    split = [replace(entry, split=drawn.get(key, "train")) for entry, key in zip(entries, keys, strict=True)]
    if by_speaker:
        return split, f"splits: by speaker ({len(speakers)})"
    why = f"only {len(speakers)} speakers" if speakers else "no column of speakers"
    return split, f"splits: by file ({why}), so the same voice may be in train and test"
