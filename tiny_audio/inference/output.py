"""Writes transcripts to files: JSON lines, text, CSV, or subtitles."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tiny_audio.config import require
from tiny_audio.data.audio_files import STDIN
from tiny_audio.inference.subtitles import Cue, srt, vtt
from tiny_audio.storage import output_path, put

COLUMNS = ("path", "text", "duration_s", "complete", "looped", "doubtful", "error")
REJECTED_S = 0.001  # duration of the subtitle that says a file was rejected


def _jsonl(lines: list[dict]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _shown(line: dict) -> str:
    """Returns the text of a file on one line, or the reason and path of a rejected file."""
    return f"[{line['error']}] {line['path']}" if "error" in line else " ".join(line["text"].split())


def _text(lines: list[dict]) -> str:
    return "".join(_shown(line) + "\n" for line in lines)


def _csv(lines: list[dict]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _cues(lines: list[dict]) -> list[Cue]:
    """Returns the segments of a long recording; of any other file, a cue that spans the whole of it."""
    line = lines[0]
    if "segments" in line:
        return [Cue(segment["start_s"], segment["end_s"], segment["text"]) for segment in line["segments"]]
    return [Cue(0, line.get("duration_s", REJECTED_S), _shown(line))]


def _srt(lines: list[dict]) -> str:
    return srt(_cues(lines))


def _vtt(lines: list[dict]) -> str:
    return vtt(_cues(lines))


FORMS: dict[str, Callable[[list[dict]], str]] = {".jsonl": _jsonl, ".txt": _text, ".csv": _csv, ".srt": _srt, ".vtt": _vtt}
OF_ONE_FILE = (".srt", ".vtt")  # each file has its own time line


def _place(path: str) -> PurePosixPath:
    """Returns where an input lies, without its suffix, its scheme, a URL's query and dots that lead out of a folder."""
    parts = path.partition("?")[0].rpartition("://")[2].split("/") if path != STDIN else ["stdin"]
    return PurePosixPath(*[part for part in parts if part not in ("", ".", "..")] or ["input"]).with_suffix("")


def _names(paths: list[str]) -> dict[str, str]:
    """Names the inputs by their files; where two files share a name, by their folders too, below the one that all lie in."""
    places = {path: _place(path) for path in paths}
    if len({place.name for place in places.values()}) == len(paths):
        return {path: place.name for path, place in places.items()}
    shared = os.path.commonpath([place.parent for place in places.values()])
    return {path: str(place.relative_to(shared)) for path, place in places.items()}


@dataclass(frozen=True)
class Output:
    """Says where the transcripts of the inputs go. `name` is absolute and may contain a *."""

    name: str
    names: dict[str, str]  # of the inputs, in their order, in place of the *

    @classmethod
    def of(cls, name: str, paths: list[str]) -> Output:
        """Checks an output's name and returns its `Output`.

        Raises:
            ConfigError: the name has an unknown suffix, a form that needs a file for each input, a * in its folder,
                or the same file for two inputs.
        """
        suffix = Path(name).suffix.lower()
        require(suffix in FORMS, f"output={name}: must end in {', '.join(FORMS)}, which says its form")
        single = suffix in OF_ONE_FILE and "*" not in name and len(paths) > 1
        remedy = f"make one for each, as output=subtitles/*{suffix}"
        require(not single, f"output={name}: {suffix} has the subtitles of one file, and there are {len(paths)}; {remedy}")
        require("*" not in str(Path(name).parent), f"output={name}: a * may stand in the file's name, not in a folder's")
        output = cls(str(output_path(name)), _names(paths))
        files: dict[Path, str] = {}
        for path in paths if "*" in name else ():
            other = files.setdefault(output.file(path), path)
            require(other == path, f"output={name}: {other} and {path} would be the same file; transcribe them one by one")
        return output

    def file(self, path: str) -> Path:
        """Returns the file that an input's transcript is written to."""
        return Path(self.name.replace("*", self.names[path]))

    @property
    def journal(self) -> Path:
        """The file beside the output that keeps finished lines until all are done."""
        path = Path(self.name.replace("*", "all"))
        return path.with_name(f".{path.name}.begun")

    def write(self, lines: dict[str, dict]) -> None:
        """Writes `lines`, keyed by input, in the inputs' order; each file is written under another name, then renamed."""
        form, files = FORMS[Path(self.name).suffix.lower()], {}
        for path in self.names:
            files.setdefault(self.file(path), []).append(lines[path])
        for file, of_file in files.items():
            put(file, form(of_file).encode())
