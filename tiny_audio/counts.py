"""Counts by source and reason, and how long lists and times are said to people."""

from __future__ import annotations

NAMED_ROWS = 5


def name_rows(ids: list[str]) -> str:
    """The first few, and how many more: "a, b, c and 7 more"."""
    rest = len(ids) - NAMED_ROWS
    return ", ".join(ids[:NAMED_ROWS]) + (f" and {rest} more" if rest > 0 else "")


def count_reject(rejects: dict[str, dict[str, int]], source: str, reason: str) -> None:
    """Adds one to the rejects that are counted by source and reason."""
    reasons = rejects.setdefault(source, {})
    reasons[reason] = reasons.get(reason, 0) + 1


def num_rejects(rejects: dict[str, dict[str, int]]) -> int:
    """Of all sources and reasons."""
    return sum(sum(reasons.values()) for reasons in rejects.values())


def rejects_line(rejects: dict[str, dict[str, int]]) -> str:
    """The counts for people: "voxpopuli: 2 empty, 3 truncated; yodas: 1 too_long"."""
    sources = {
        name: ", ".join(f"{count} {reason}" for reason, count in sorted(rejects[name].items())) for name in sorted(rejects)
    }
    return "; ".join(f"{name}: {counts}" for name, counts in sources.items())
