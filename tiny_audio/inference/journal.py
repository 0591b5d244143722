"""The transcripts of a job that are done, kept in a file beside its output until all are: a second start goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_audio.data.rows import UNREADABLE
from tiny_audio.storage import put

STDIN = "-"


class Journal:
    """A file of JSON lines, the first of which says what makes them.

    It is flushed line by line. A line that was cut off counts for nothing, and neither does a journal that another model wrote.
    """

    def __init__(self, path: Path, made_by: dict[str, Any]):
        self.path = path
        self.lines: dict[str, dict] = {}  # by input
        head, *lines = _whole_lines(path) or [None]
        if head == made_by:
            self.lines = {line["path"]: line for line in lines if line["path"] != STDIN and line.get("error") != UNREADABLE}
        put(path, "".join(map(_as_line, (made_by, *self.lines.values()))).encode())
        self.file = path.open("a", encoding="utf-8")

    def add(self, line: dict) -> None:
        """Keeps the line of an input."""
        self.lines[line["path"]] = line
        self.file.write(_as_line(line))
        self.file.flush()

    def close(self) -> None:
        """Deletes the file: all that it held is in the output."""
        self.file.close()
        self.path.unlink()


def _as_line(values: dict) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.split("\n")[:-1]:  # the last one is empty, or was cut off
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
