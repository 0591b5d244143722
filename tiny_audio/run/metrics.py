"""What a run reports as it goes: metrics.jsonl, with one line per logged step, and the progress line that people watch."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tiny_audio.storage import is_local, list_folder, put, read_folder

METRICS_FILE = "metrics.jsonl"  # object storage cannot append: there it is a folder with one object per line
FILE_POLL_S = 0.5  # pause between two looks at a local file
FOLDER_POLL_S = 2.0  # pause between two listings of object storage
BAR_WIDTH = 20  # characters
TOLD = {"warning", "note"}  # keys of lines that are no metrics


def append_warning(run_dir: Path, step: int, warning: str) -> None:
    """Appends a warning to metrics.jsonl; the driver prints it on stderr, and `read_metrics` leaves it out."""
    append_metrics(run_dir, {"step": step, "warning": warning})


def append_note(run_dir: Path, step: int, note: str) -> None:
    """Appends what people should know to metrics.jsonl; the driver prints it, and `read_metrics` leaves it out."""
    append_metrics(run_dir, {"step": step, "note": note})


def append_metrics(run_dir: Path, values: dict) -> None:
    """Appends one line to metrics.jsonl."""
    path, line = run_dir / METRICS_FILE, json.dumps(values) + "\n"
    if not is_local(path):
        put(path / f"{time.time_ns():020d}.json", line.encode())
        return
    with path.open("ab+") as file:
        if file.tell():  # the file is not empty
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else f"\n{line}"  # a full disk, say, cut the last line off
        file.write(line.encode())


def _parse_lines(lines: Iterable[str | bytes]) -> list[dict]:
    """Parses lines of metrics and skips any that was cut off."""
    parsed = []
    for line in lines:
        with suppress(ValueError):
            parsed.append(json.loads(line))
    return parsed


def read_json_lines(path: Path) -> list[dict]:
    """Reads one JSON object per line; returns an empty list if there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:  # iterated, because `splitlines` would also split at a U+2028 inside a text
        return [json.loads(line) for line in file if line.strip()]


def read_lines(run_dir: Path) -> list[dict]:
    """Returns all lines of metrics.jsonl, warnings and notes included, in the order in which they were written."""
    path = run_dir / METRICS_FILE
    if not is_local(path):
        return _parse_lines(read_folder(path, set()).values())
    return _parse_lines(path.read_bytes().splitlines()) if path.is_file() else []


def read_metrics(run_dir: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl, sorted by step; of a step that a restart repeated, only the last line counts."""
    last = {(line["step"], "val_loss" in line): line for line in read_lines(run_dir) if not TOLD & line.keys()}
    return [last[key] for key in sorted(last)]


def format_duration(seconds: float) -> str:
    """Formats seconds as a clock does: 75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_line(values: dict, num_steps: int, left_s: float) -> str:
    """Formats a line of metrics for people, with a progress bar."""
    share_done = values["step"] / num_steps
    bar = ("█" * int(share_done * BAR_WIDTH)).ljust(BAR_WIDTH, "░")
    if "val_loss" in values:
        wer = f"  WER {values['val_wer']:.1%}" if "val_wer" in values else ""
        return f"step {values['step']:>5}  validation loss {values['val_loss']:.3f}{wer}"
    return (
        f"step {values['step']:>5} {bar} {share_done:4.0%}  loss {values['loss']:.4f}  lr {values['learning_rate']:.1e}  "
        f"{values['audio_s_per_s']:.0f} s of audio/s  {values['data_wait_share']:.0%} waiting for data  "
        f"{values['num_rejected']} rejected  {format_duration(left_s)} left"
    )


def follow_file(path: Path) -> Callable[[], list[dict]]:
    """Returns a function that reads the lines added since its previous call, or at first, since `follow_file` was called."""
    position = path.stat().st_size if path.exists() else 0

    def new_lines() -> list[dict]:
        nonlocal position
        try:
            with path.open("rb") as file:
                file.seek(position)
                whole_lines, newline, _ = file.read().rpartition(b"\n")
        except OSError:  # no file yet, or a shared disk fails for a moment; the next call reads what this one missed
            return []
        position += len(whole_lines + newline)
        return _parse_lines(whole_lines.splitlines())

    return new_lines


def follow_folder(folder: Path) -> Callable[[], list[dict]]:
    """Does what `follow_file` does, for a folder that holds one object per line."""
    known = {path.name for path in list_folder(folder)}

    def new_lines() -> list[dict]:
        try:
            new_objects = read_folder(folder, known)
        except Exception:  # network errors come in many types; the next call reads what this one missed
            return []
        known.update(new_objects)
        return _parse_lines(new_objects.values())

    return new_lines


class MetricsFollower:
    """Prints each line that a run adds to its metrics.jsonl and passes it to `tracks`, from a thread, while the context lasts."""

    def __init__(self, run_dir: Path, num_steps: int, tracks: Sequence[Callable[[dict], None]]):
        path = run_dir / METRICS_FILE
        self.new_lines = follow_file(path) if is_local(path) else follow_folder(path)
        self.poll_s = FILE_POLL_S if is_local(path) else FOLDER_POLL_S
        self.num_steps, self.tracks = num_steps, tracks
        self.first_line: tuple[int, float] | None = None  # its step, and when it came
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> MetricsFollower:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.closed.set()
        self.thread.join()
        self._print_new()

    def _follow(self) -> None:
        while not self.closed.wait(self.poll_s):
            self._print_new()

    def _print_new(self) -> None:
        for values in self.new_lines():
            self._print(values)

    def _print(self, values: dict) -> None:
        if "warning" in values:
            print(f"warning: {values['warning']}", flush=True, file=sys.stderr)
            return
        if "note" in values:
            print(values["note"], flush=True)
            return
        now = time.monotonic()
        first_step, first_time = self.first_line = self.first_line or (values["step"], now)
        s_per_step = (now - first_time) / max(1, values["step"] - first_step)
        left_s = (self.num_steps - values["step"]) * s_per_step
        print(progress_line(values, self.num_steps, left_s), flush=True, file=sys.stdout)
        for track in self.tracks:
            track(values)
