"""Keeps a job's finished transcripts in a file beside its output until all are done, so that a second start resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_audio.data.audio_files import STDIN
from tiny_audio.data.rows import UNREADABLE
from tiny_audio.storage import put


class Journal:
    """Writes a file of JSON lines; its first line says what makes the others.

    The file is flushed line by line. A line that was cut off is ignored, and so is a journal that another model wrote.
    """

    def __init__(self, path: Path, made_by: dict[str, Any]):
        self.path = path
        self.lines: dict[str, dict] = {}  # keyed by input
        head, *lines = _whole_lines(path) or [None]
        if head == made_by:
            self.lines = {line["path"]: line for line in lines if line["path"] != STDIN and line.get("error") != UNREADABLE}
        put(path, "".join(map(_as_line, (made_by, *self.lines.values()))).encode())
        self.file = path.open("a", encoding="utf-8")

    def add(self, line: dict) -> None:
        """Adds the line of an input to the file."""
        self.lines[line["path"]] = line
        self.file.write(_as_line(line))
        self.file.flush()

    def close(self) -> None:
        """Deletes the file, since the output now holds everything in it."""
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
    for line in text.split("\n")[:-1]:  # the last line is empty or was cut off
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
