"""Reports what is suspect in a data set, counted by source, and how much of it there is, by split and speaker."""

from __future__ import annotations

import math
from collections import Counter

import pyarrow as pa

from tiny_audio.counts import duration, name_rows
from tiny_audio.data.labels import LABEL_CHARS_PER_S

QUIET_DBFS = -45.0  # below: hard to hear
LONG_SILENCE_S = 1.0  # at one end
SLOW_CHARS_PER_S = 2.0  # below: words are missing from the label, or the clip is mostly silence
TOP_SPEAKERS = 10
FACTS = pa.schema(  # a row for each clip that was read
    [
        *((name, pa.string()) for name in ("id", "source", "split", "speaker", "path", "reason", "digest")),
        *((name, pa.float64()) for name in ("duration_s", "level_dbfs", "lead_s", "trail_s")),
        ("num_chars", pa.int64()),
        ("clipped", pa.bool_()),
    ]
)
COUNTS = {  # of a source in the table -> how it reads there
    "rows": "rows",
    "hours": "audio",
    "empty_labels": "no label",
    "clipped": "clipped",
    "quiet": "quiet",
    "long_silence": "silence",
    "fast_labels": "fast",
    "slow_labels": "slow",
    "duplicate_ids": "same id",
    "duplicate_audio": "same audio",
}


def _percentile(values: list[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, math.floor(share * len(values)))] if values else None


def _twice(rows: list[dict], key: str) -> list[str]:
    """Returns the values of a key that several rows share."""
    counts = Counter(row[key] for row in rows if row[key])
    return sorted(value for value, count in counts.items() if count > 1)


def _in_several_splits(rows: list[dict], key: str) -> list[str]:
    splits: dict[str, set[str]] = {}
    for row in rows:
        if row[key]:
            splits.setdefault(row[key], set()).add(row["split"])
    return sorted(value for value, names in splits.items() if len(names) > 1)


def _grouped(rows: list[dict], key: str) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _source_report(rows: list[dict]) -> dict:
    """Counts what is suspect in one source's rows."""
    clips = [row for row in rows if not row["reason"]]
    rates = [row["num_chars"] / row["duration_s"] for row in clips]
    silences = [max(row["lead_s"], row["trail_s"]) for row in clips]
    levels = [row["level_dbfs"] for row in clips]
    copies = set(_twice(clips, "digest"))
    return {
        "rows": len(rows),
        "hours": sum(row["duration_s"] for row in clips) / 3600,
        "rejected": dict(sorted(Counter(row["reason"] for row in rows if row["reason"]).items())),
        "empty_labels": sum(row["reason"] == "no_label" for row in rows),
        "clipped": sum(row["clipped"] for row in clips),
        "quiet": sum(level < QUIET_DBFS for level in levels),
        "level_dbfs": {name: _percentile(levels, share) for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95))},
        "long_silence": sum(silence > LONG_SILENCE_S for silence in silences),
        "silence_s": sum(row["lead_s"] + row["trail_s"] for row in clips),
        "chars_per_s": {name: _percentile(rates, share) for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95))},
        "fast_labels": sum(rate > LABEL_CHARS_PER_S for rate in rates),
        "slow_labels": sum(rate < SLOW_CHARS_PER_S for rate in rates),
        "duplicate_ids": len(_twice(rows, "id")),
        "duplicate_audio": sum(row["digest"] in copies for row in clips),
    }


def _split_report(clips: list[dict]) -> dict:
    speakers = {row["speaker"] for row in clips if row["speaker"]}
    return {"rows": len(clips), "hours": sum(row["duration_s"] for row in clips) / 3600, "speakers": len(speakers)}


def make_report(facts: pa.Table, dataset: str) -> dict:
    """Makes the report of a table with the columns FACTS, in JSON values; rows without a source have the dataset's name."""
    rows = [row | {"source": row["source"] or dataset} for row in facts.to_pylist()]
    clips = [row for row in rows if not row["reason"]]
    seconds: Counter[str] = Counter()
    for row in clips:
        seconds[row["speaker"] or "(unknown)"] += row["duration_s"]
    leaked = set(_in_several_splits(clips, "digest"))
    return {
        "sources": {name: _source_report(of_source) for name, of_source in sorted(_grouped(rows, "source").items())},
        "splits": {name: _split_report(of_split) for name, of_split in sorted(_grouped(clips, "split").items())},
        "speaker_hours": {name: total / 3600 for name, total in seconds.most_common()},
        "duplicate_ids": _twice(rows, "id"),
        "ids_in_two_splits": _in_several_splits(rows, "id"),
        "speakers_in_two_splits": _in_several_splits(clips, "speaker"),
        "audio_in_two_splits": [row["id"] for row in clips if row["digest"] in leaked],
    }


def _cell(key: str, value: float) -> str:
    return f"{duration(3600 * value) if key == 'hours' else value:>11}"


def report_table(report: dict) -> str:
    """Writes the report for people."""
    width = max(map(len, ["source", "split", *report["sources"], *report["splits"]])) + 2
    lines = ["source".ljust(width) + "".join(f"{name:>11}" for name in COUNTS.values())]
    for name, source in report["sources"].items():
        lines.append(name.ljust(width) + "".join(_cell(key, source[key]) for key in COUNTS))
    for name, source in report["sources"].items():
        if source["level_dbfs"]["p50"] is not None:
            level, rate = source["level_dbfs"], source["chars_per_s"]
            about = "level {p5:.0f} to {p95:.0f} dBFS".format(**level), "label {p5:.1f} to {p95:.1f} characters/s".format(**rate)
            lines.append(f"{name}: {', '.join(about)} (for nine clips of ten)")
    lines += ["", "split".ljust(width) + "".join(f"{name:>11}" for name in ("rows", "audio", "speakers"))]
    for name, split in report["splits"].items():
        lines.append(name.ljust(width) + "".join(_cell(key, value) for key, value in split.items()))
    named = [f"{name} {duration(3600 * hours)}" for name, hours in report["speaker_hours"].items()]
    more = f" and {len(named) - TOP_SPEAKERS} more" * (len(named) > TOP_SPEAKERS)
    lines.append(f"speakers: {', '.join(named[:TOP_SPEAKERS])}{more}")
    for key in ("duplicate_ids", "ids_in_two_splits", "speakers_in_two_splits", "audio_in_two_splits"):
        if report[key]:
            lines.append(f"{key.replace('_', ' ')}: {name_rows(report[key])}")
    return "\n".join(lines)
