"""Defines the doctor's findings, one line each, and formats them as a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Says how bad a finding is."""

    OK = "ok"
    WARN = "warn"  # training works, and is slower or less safe than it could be
    FAIL = "FAIL"  # training would fail, or wait for ever


@dataclass(frozen=True)
class Finding:
    """Holds the outcome of one check in one place.

    `place` is a node's name or "cluster". `remedy` is empty if the verdict is OK.
    """

    check: str
    place: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def ok(check: str, detail: str, place: str = "cluster") -> Finding:
    """Makes a finding that nothing is wrong."""
    return Finding(check, place, Verdict.OK, detail)


def warn(check: str, place: str, detail: str, remedy: str) -> Finding:
    """Makes a finding that a training would survive."""
    return Finding(check, place, Verdict.WARN, detail, remedy)


def fail(check: str, place: str, detail: str, remedy: str) -> Finding:
    """Makes a finding that a training would not survive."""
    return Finding(check, place, Verdict.FAIL, detail, remedy)


def is_healthy(findings: list[Finding]) -> bool:
    """Says whether no check failed."""
    return all(finding.verdict != Verdict.FAIL for finding in findings)


def finding_table(findings: list[Finding]) -> str:
    """Formats findings as aligned columns; the remedy follows on its own line."""
    rows = [("check", "place", "verdict", "detail")]
    rows += [(finding.check, finding.place, str(finding.verdict), finding.detail) for finding in findings]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
    indent = " " * (sum(widths) + 6)
    remedies = ["", *(f"\n{indent}remedy: {finding.remedy}" if finding.remedy else "" for finding in findings)]
    return "\n".join(line + remedy for line, remedy in zip(lines, remedies, strict=True))
