"""Writes subtitles: cues with their times, as SRT or WebVTT."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple


class Cue(NamedTuple):
    """Holds a text and when it is shown, in seconds from the recording's beginning."""

    start_s: float
    end_s: float
    text: str


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _lines(cue: Cue, point: str) -> str:
    text = " ".join(cue.text.split())  # an empty line would end the cue
    return f"{_time(cue.start_s, point)} --> {_time(cue.end_s, point)}\n{text}\n"


def srt(cues: Iterable[Cue]) -> str:
    """Returns the cues that have text, as SRT."""
    spoken = [cue for cue in cues if cue.text.strip()]
    return "\n".join(f"{number}\n{_lines(cue, ',')}" for number, cue in enumerate(spoken, 1))


def vtt(cues: Iterable[Cue]) -> str:
    """Returns the cues that have text, as WebVTT, in which &, < and --> have meanings of their own."""
    spoken = [cue for cue in cues if cue.text.strip()]
    escaped = [cue._replace(text=escape(cue.text, quote=False)) for cue in spoken]
    return "WEBVTT\n\n" + "\n".join(_lines(cue, ".") for cue in escaped)
