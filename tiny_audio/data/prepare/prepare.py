"""Makes shards of people's own files in Ray Data tasks, and a report on them. A second start resumes where the first stopped.

A task takes in `rows_per_file` rows of the inputs, in their order: it writes a shard for each split that they belong to, then a
part of facts, by which a later start knows that the task is done. Clips that `decode` refuses are rejected with its reason;
the bytes of the others are kept as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from upath import UPath

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.mix import is_silent
from tiny_audio.config import ConfigError, absolute, require, storage_path
from tiny_audio.data.columns import SCHEMA
from tiny_audio.data.labels import clean_label, max_label_chars
from tiny_audio.data.plan import RowSlice
from tiny_audio.data.prepare.config import PrepareConfig
from tiny_audio.data.prepare.entries import Entry, read_inputs, read_text, shard_columns
from tiny_audio.data.prepare.measure import measure
from tiny_audio.data.prepare.report import FACTS, make_report
from tiny_audio.data.prepare.splits import assign_splits
from tiny_audio.data.rows import UNREADABLE
from tiny_audio.data.shards import load_audio, pcm_or_reason, read_audio, read_what_is_there
from tiny_audio.data.stream import map_each
from tiny_audio.storage import list_folder, put, said_in_one_line

REPORT, REJECTS, PLAN = "report.json", "rejects.jsonl", "plan.json"
PARTS, CHECKED = "_parts", "_checked"  # folders of facts: hidden, so that no glob takes them for shards
SOURCE = pa.field("source", pa.string())
UNMEASURED = {"clipped": False, "level_dbfs": 0.0, "lead_s": 0.0, "trail_s": 0.0, "digest": ""}
Audio = bytes | memoryview | None


def _follows(entry: Entry, other: Entry) -> bool:
    """Says whether a row comes right after another one in the same row group."""
    place = entry.audio, entry.row_group, entry.row
    return entry.row_group >= 0 and place == (other.audio, other.row_group, other.row + 1)


def _stretches(entries: list[Entry]) -> list[list[Entry]]:
    """Splits rows into those that are read at once: neighbours in a row group, or a single file."""
    stretches: list[list[Entry]] = []
    for entry in entries:
        if stretches and _follows(entry, stretches[-1][-1]):
            stretches[-1].append(entry)
        else:
            stretches.append([entry])
    return stretches


def _read_file(entry: Entry, max_duration_s: float) -> tuple[str, Audio]:
    """Returns the text and the audio of a file; text that cannot be read is empty."""
    try:
        text = read_text(entry.transcript) if entry.transcript else entry.text
    except ConfigError:
        text = ""
    return text, read_audio(entry.audio, max_duration_s) if entry.audio else None


def _read_stretch(stretch: list[Entry], columns: dict[str, str], max_duration_s: float) -> list[tuple[str, Audio] | None]:
    """Returns the text and the audio of each row, or None for a row of a shard that cannot be read."""
    first, last = stretch[0], stretch[-1]
    if first.row_group < 0:
        return [_read_file(first, max_duration_s)]
    part = RowSlice(first.audio, first.row_group, first.row, last.row + 1, first.dataset, first.file_id)
    rows = read_what_is_there(part, columns)
    read = [(row["text"] or "", load_audio(row["wav"], first.audio, max_duration_s)) for row in rows]
    return [*read, *[None] * (len(stretch) - len(read))]


def _usable(entry: Entry, read: tuple[str, Audio] | None, max_duration_s: float) -> np.ndarray | str:
    """Returns the samples of a row that can be trained, or the reason why it cannot."""
    if read is None:
        return UNREADABLE
    label = clean_label(read[0])
    if not entry.id or not label:
        return "no_label" if entry.id else "no_id"
    pcm = pcm_or_reason(read[1], max_duration_s)
    if isinstance(pcm, str):
        return pcm
    if is_silent(pcm):
        return "silent"
    return "label_too_long" if len(label) > max_label_chars(len(pcm) / SAMPLE_RATE) else pcm


def _facts(entry: Entry, text: str, pcm: np.ndarray | str) -> dict:
    """Collects what the report needs to know of one row."""
    names = {"id": entry.id, "source": entry.source, "split": entry.split, "speaker": entry.speaker, "path": entry.audio}
    if isinstance(pcm, str):
        return names | UNMEASURED | {"reason": pcm, "duration_s": 0.0, "num_chars": 0}
    sizes = {"reason": "", "duration_s": len(pcm) / SAMPLE_RATE, "num_chars": len(clean_label(text))}
    return names | sizes | dataclasses.asdict(measure(pcm))


def _as_flac(pcm: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC")
    return file.getvalue()


def _shard_row(entry: Entry, text: str, data: bytes | memoryview, duration_s: float) -> dict:
    """Returns a row of a shard in LoquaciousSet's columns."""
    return {
        "ID": entry.id,
        "duration": duration_s,
        "wav": {"bytes": bytes(data), "path": entry.audio.rpartition("/")[2]},
        "spk_id": entry.speaker,
        "sex": "",
        "text": " ".join(text.split()),
        "source": entry.source,
    }


def _put_table(path: Path | UPath, rows: list[dict], schema: pa.Schema, rows_per_row_group: int) -> None:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=rows_per_row_group)
    put(path, file.getvalue())


def take_in(task: dict) -> dict:
    """Takes in a task's rows, as the module's docstring says, in a Ray Data task; returns the task's number."""
    config, output = PrepareConfig(**json.loads(task["config"])), storage_path(task["output"])
    entries = [Entry(**entry) for entry in json.loads(task["entries"])]
    facts, rows = [], {}
    for stretch in _stretches(entries):
        for entry, read in zip(
            stretch, _read_stretch(stretch, shard_columns(config.columns), config.max_duration_s), strict=True
        ):
            pcm = _usable(entry, read, config.max_duration_s)
            facts.append(_facts(entry, read[0] if read else "", pcm))
            if not isinstance(pcm, str) and not config.check:
                data = _as_flac(pcm) if config.encoding == "flac" else read[1]
                rows.setdefault(entry.split, []).append(_shard_row(entry, read[0], data, len(pcm) / SAMPLE_RATE))
    schema = SCHEMA.append(SOURCE) if task["has_sources"] else SCHEMA
    for split, of_split in rows.items():
        name = f"{split}-{task['number']:05d}-of-{task['count']:05d}.parquet"
        _put_table(output / split / name, of_split, schema, config.rows_per_row_group)
    _put_table(output / task["part"], facts, FACTS, len(facts))
    return {"number": task["number"]}


def _tasks(config: PrepareConfig, output: str, entries: list[Entry]) -> list[dict]:
    count, parts = -(-len(entries) // config.rows_per_file), CHECKED if config.check else PARTS
    has_sources = any(entry.source for entry in entries)
    return [
        {
            "number": number,
            "count": count,
            "part": f"{parts}/{number:05d}.parquet",
            "output": output,
            "config": json.dumps(dataclasses.asdict(config)),
            "entries": json.dumps([dataclasses.asdict(entry) for entry in entries[start : start + config.rows_per_file]]),
            "has_sources": has_sources,
        }
        for number, start in enumerate(range(0, len(entries), config.rows_per_file))
    ]


def _require_same(folder: Path | UPath, output: Path | UPath, tasks: list[dict]) -> None:
    """Records which tasks make the folder; refuses a folder that other inputs or settings made."""
    digest = hashlib.sha256(json.dumps(tasks).encode()).hexdigest()
    remedy = "delete the folder, or choose another output_dir"
    if (folder / PLAN).is_file():
        same = json.loads((folder / PLAN).read_text())["tasks"] == digest
        require(same, f"{output}: was begun with other inputs or settings; {remedy}")
        return
    shards = [path for split in ("train", "dev", "test") for path in list_folder(output / split) if path.suffix == ".parquet"]
    require(folder.name == CHECKED or not shards, f"{output}: holds Parquet files already; {remedy}")
    put(folder / PLAN, json.dumps({"tasks": digest}).encode())


def _write_results(output: Path | UPath, tasks: list[dict]) -> dict:
    """Gathers the tasks' facts into report.json and rejects.jsonl."""
    tables = [pq.read_table(io.BytesIO((output / task["part"]).read_bytes())) for task in tasks]
    facts = pa.concat_tables(tables)
    rejects = [row for row in facts.select(["id", "reason", "path", "source"]).to_pylist() if row["reason"]]
    report = make_report(facts, dataset=output.name)
    put(output / REJECTS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejects).encode())
    put(output / REPORT, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    return report


def prepare(
    config: PrepareConfig,
    say: Callable[[str], None],
    show_progress: Callable[[Iterable, int], Iterable],
    start_ray: Callable[[], None] = lambda: None,
) -> dict:
    """Makes the shards, or only examines the inputs with `check`; returns what report.json holds.

    Args:
        say: is called with a line on the inputs, before any of their audio is read.
        show_progress: wraps the iterable of finished tasks; its second argument is their number.
        start_ray: starts Ray once the inputs are listed; not needed if Ray is already running.

    Raises:
        ConfigError: an input cannot be read, or the output folder holds what other inputs or settings made.
    """
    output = absolute(config.output_dir)
    folder = storage_path(output)
    listed = read_inputs(config.inputs, config.columns)
    entries, note = assign_splits(listed, config.dev_share, config.test_share, config.seed)
    say(f"{len(entries)} rows; {note}")
    tasks = _tasks(config, output, entries)
    with said_in_one_line(folder):
        _require_same(folder / Path(tasks[0]["part"]).parent, folder, tasks)
        to_do = [task for task in tasks if not (folder / task["part"]).is_file()]
    if len(to_do) < len(tasks):
        say(f"{len(tasks) - len(to_do)} of {len(tasks)} parts are there already")
    if to_do:
        start_ray()
        for _ in show_progress(map_each(to_do, take_in), len(to_do)):
            pass
    return _write_results(folder, tasks)
