"""Counts of rejected rows by source and reason, and how they and durations are worded for people."""

from __future__ import annotations

NAMED_ROWS = 5


def name_rows(ids: list[str]) -> str:
    """Names the first few rows and counts the rest: "a, b, c, d, e and 7 more"."""
    rest = len(ids) - NAMED_ROWS
    return ", ".join(ids[:NAMED_ROWS]) + (f" and {rest} more" if rest > 0 else "")


def duration(seconds: float) -> str:
    """Formats a duration in the largest unit that it fills: "2.5 h", "10.2 min", "42 s", with no-break spaces."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f}\u00a0h"
    return f"{seconds / 60:.1f}\u00a0min" if seconds >= 60 else f"{seconds:.0f}\u00a0s"


def count_reject(rejects: dict[str, dict[str, int]], source: str, reason: str) -> None:
    """Adds one reject to the counts by source and reason."""
    reasons = rejects.setdefault(source, {})
    reasons[reason] = reasons.get(reason, 0) + 1


def num_rejects(rejects: dict[str, dict[str, int]]) -> int:
    """The number of rejects of all sources and reasons together."""
    return sum(sum(reasons.values()) for reasons in rejects.values())


def rejects_line(rejects: dict[str, dict[str, int]]) -> str:
    """Writes the counts for people: "voxpopuli: 2 empty, 3 truncated; yodas: 1 too_long"."""
    lines = []
    for source, reasons in sorted(rejects.items()):
        lines.append(f"{source}: " + ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())))
    return "; ".join(lines)
