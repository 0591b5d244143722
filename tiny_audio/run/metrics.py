"""What a run says while it goes: metrics.jsonl, a line per logged step, and the progress line that people watch."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from tiny_audio.storage import is_local, list_folder, put, read_folder

METRICS_FILE = "metrics.jsonl"  # on object storage, which cannot append, a folder with an object for every line
POLL_S = {True: 0.5, False: 2.0}  # how often the driver looks for new lines, of a file, and on object storage
BAR_WIDTH = 20


def append_warning(run_dir: Path, step: int, warning: str) -> None:
    """Adds a line to metrics.jsonl that is for people: the driver says it on stderr, and `read_metrics` leaves it out."""
    append_metrics(run_dir, {"step": step, "warning": warning})


def append_metrics(run_dir: Path, values: dict) -> None:
    """Adds a line to metrics.jsonl."""
    path, line = run_dir / METRICS_FILE, json.dumps(values) + "\n"
    if not is_local(path):
        put(path / f"{time.time_ns():020d}.json", line.encode())
        return
    with path.open("ab+") as file:
        if file.tell():  # at the end of what is there
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else f"\n{line}"  # after one that was cut off, as by a full disk
        file.write(line.encode())


def _parsed(lines: Iterable[str | bytes]) -> list[dict]:
    """Lines of metrics; one that was cut off is passed over."""
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def read_json_lines(path: Path) -> list[dict]:
    """A JSON object a line; none where there is no file. Iterates it: `splitlines` would also split at a U+2028 in a text."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def read_lines(run_dir: Path) -> list[dict]:
    """All lines of metrics.jsonl in the order that they were written, warnings too."""
    path = run_dir / METRICS_FILE
    if not is_local(path):
        return _parsed(read_folder(path, set()).values())
    return _parsed(path.read_bytes().splitlines()) if path.is_file() else []


def read_metrics(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl by step; a step that ran twice, after a restart, counts once, as it ran last."""
    last = {(line["step"], "val_loss" in line): line for line in read_lines(run_dir) if "warning" not in line}
    return [last[key] for key in sorted(last)]


def format_duration(seconds: float) -> str:
    """75 -> 1:15"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_line(values: dict, num_steps: int, left_s: float) -> str:
    """A line of metrics for people, with a bar."""
    done = values["step"] / num_steps
    bar = ("█" * int(done * BAR_WIDTH)).ljust(BAR_WIDTH, "░")
    if "val_loss" in values:
        wer = f"  WER {values['val_wer']:.1%}" if "val_wer" in values else ""
        return f"step {values['step']:>5}  validation loss {values['val_loss']:.3f}{wer}"
    return (
        f"step {values['step']:>5} {bar} {done:4.0%}  loss {values['loss']:.4f}  lr {values['learning_rate']:.1e}  "
        f"{values['audio_s_per_s']:.0f} s of audio/s  {values['data_wait_share']:.0%} waiting for data  "
        f"{values['num_rejected']} rejected  {format_duration(left_s)} left"
    )


def follow_file(path: Path) -> Callable[[], list[dict]]:
    """A function that returns the lines that came since it was called last, or since now."""
    position = path.stat().st_size if path.exists() else 0

    def new_lines() -> list[dict]:
        nonlocal position
        try:
            with path.open("rb") as file:
                file.seek(position)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:  # not there yet, or of a shared disk: what is there is still there the next time
            return []
        position += len(whole + end)
        return _parsed(whole.splitlines())

    return new_lines


def follow_folder(folder: Path) -> Callable[[], list[dict]]:
    """`follow_file` for a folder with an object for every line."""
    known = {path.name for path in list_folder(folder)}

    def new_lines() -> list[dict]:
        try:
            found = read_folder(folder, known)
        except Exception:  # of the network, of many kinds: what is there is still there the next time
            return []
        known.update(found)
        return _parsed(found.values())

    return new_lines


class MetricsFollower:
    """Prints what a run adds to its metrics.jsonl, and hands it on, from a thread, until closed. Used as a context."""

    def __init__(self, run_dir: Path, num_steps: int, track: Callable[[dict], None]):
        path = run_dir / METRICS_FILE
        self.new_lines = follow_file(path) if is_local(path) else follow_folder(path)
        self.poll_s = POLL_S[is_local(path)]
        self.num_steps, self.track = num_steps, track
        self.first: tuple[int, float] | None = None
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
        now = time.monotonic()
        first_step, started = self.first = self.first or (values["step"], now)
        pace = (now - started) / max(1, values["step"] - first_step)
        print(progress_line(values, self.num_steps, (self.num_steps - values["step"]) * pace), flush=True, file=sys.stdout)
        self.track(values)
