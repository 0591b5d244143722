"""Shows the figures of a load test as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

COLUMNS = ("server", "load", "audio s/s", "answers/s", "p50 ms", "p95 ms", "p99 ms", "first text", "not ok")


def load_name(row: dict) -> str:
    """Names a row's load: "8 clients" or "20/s"."""
    if "clients" not in row:
        return f"{row['requests_per_s']:g}/s"
    return "1 client" if row["clients"] == 1 else f"{row['clients']} clients"


def _server_name(row: dict) -> str:
    return f"{row['model']} at {urlsplit(row['url']).netloc}"


def _cells(row: dict) -> list[str]:
    failed = {outcome: count for outcome, count in row["outcomes"].items() if outcome != "ok"}
    figures = [
        row["audio_s_per_s"],
        row["answers_per_s"],
        *(row[f"p{rank}_ms"] for rank in (50, 95, 99)),
        row["first_text_p50_ms"],
    ]
    shown = ["-" if figure is None else f"{figure:,.1f}" if figure < 100 else f"{figure:,.0f}" for figure in figures]
    not_ok = ", ".join(f"{count} x {outcome}" for outcome, count in failed.items()) or "0"
    return [_server_name(row), load_name(row), *shown, f"{not_ok} of {row['num_sent']}"]


def table(rows: Sequence[dict]) -> str:
    """Lays the rows out as a table for a terminal."""
    lines = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def draw(rows: Sequence[dict], path: Path) -> None:
    """Draws throughput and latency of each server over its loads, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    loads = list(dict.fromkeys(load_name(row) for row in rows))
    for number, server in enumerate(dict.fromkeys(_server_name(row) for row in rows)):
        own, colour = [row for row in rows if _server_name(row) == server], f"C{number}"
        places = [loads.index(load_name(row)) for row in own]
        speed.plot(places, [row["audio_s_per_s"] for row in own], "o-", color=colour, label=server)
        for rank, style in ((50, "o-"), (95, "s--"), (99, "^:")):
            seconds = [(row[f"p{rank}_ms"] or float("nan")) / 1000 for row in own]
            latency.plot(places, seconds, style, color=colour, label=f"{server}, p{rank}")
    speed.set(title="Throughput", ylabel="seconds of audio a second")
    latency.set(title="Latency", ylabel="seconds", yscale="log")
    for axes in (speed, latency):
        axes.set_xticks(range(len(loads)), loads)
        axes.grid(alpha=0.3)
        axes.legend()
    speed.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
