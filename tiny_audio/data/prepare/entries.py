"""Lists the rows of people's inputs: folders of audio, manifests, Parquet. This reads names and labels, but no audio."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import fsspec

from tiny_audio.config import ConfigError, absolute_data, dataset_reference, one_line, require
from tiny_audio.data.audio_files import folder_files, is_audio
from tiny_audio.data.dataset_files import glob_files, is_file
from tiny_audio.data.footers import PROBED_ROWS, read_dataset
from tiny_audio.data.plan import RowGroup, plan_pass
from tiny_audio.data.shards import audio_path, read_names
from tiny_audio.data.sources import dataset_name

MANIFESTS = (".csv", ".tsv", ".jsonl", ".json")
METADATA = tuple(f"metadata{suffix}" for suffix in MANIFESTS)  # of `datasets`' audiofolder
TRANSCRIPTS = (".txt", ".lab")
AUDIO_FOLDERS = ("clips", "wavs", "audio")  # beside a manifest, as in Common Voice
USUAL_NAMES = {  # of the columns of manifests and of datasets on the hub -> ours
    **dict.fromkeys(("wav", "audio", "file_name", "path", "audio_filepath", "audio_path", "file", "filename"), "wav"),
    **dict.fromkeys(("text", "sentence", "transcription", "transcript", "normalized_text", "label"), "text"),
    **dict.fromkeys(("ID", "id", "utterance_id", "utt_id"), "ID"),
    **dict.fromkeys(("spk_id", "speaker_id", "speaker", "client_id"), "spk_id"),
    **dict.fromkeys(("source",), "source"),
    **dict.fromkeys(("split", "subset"), "split"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "validation", "valid", "val"), "dev"),
    **dict.fromkeys(("test", "eval"), "test"),
}


@dataclass(frozen=True)
class Entry:
    """Holds a row to take in, whose audio is a file or lies at `row` in a row group of a shard."""

    id: str
    audio: str  # path or URL of the file, or of the shard
    text: str = ""
    transcript: str = ""  # path or URL of a file with the text
    speaker: str = ""
    source: str = ""
    split: str = ""  # as the input has it; empty where it has none
    row_group: int = -1  # -1: `audio` is no shard
    row: int = -1
    dataset: str = ""  # of a shard
    file_id: str = ""


def _split_in(path: str) -> str:
    """Returns the split that a folder or a shard's name tells: train/, data/test-00000-of-00001.parquet."""
    parts = [part.lower() for part in PurePosixPath(path).parts]
    names = [*parts[:-1], parts[-1].split("-")[0].split(".")[0]] if parts else []
    return next((SPLITS[name] for name in reversed(names) if name in SPLITS), "")


def read_text(path: str) -> str:
    """Reads a text file, local or of any fsspec URL.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8.
    """
    try:
        with fsspec.open(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8; save it in that encoding") from None
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from None


def _table_rows(path: str, text: str) -> Iterator[tuple[int, dict]]:
    """Yields the rows of a CSV or TSV file as dicts, each with its line number."""
    header = text.partition("\n")[0]
    delimiter = "\t" if path.lower().endswith(".tsv") else max(",;|\t", key=header.count)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL  # Common Voice's texts hold single quotes
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True
    )
    try:
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        require(not twice, f"{path}: the column {twice and twice[0]} is there twice; rename one of them")
        for row in reader:
            require(None not in row, f"{path}: line {reader.line_num} has more fields than the header")
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num + 1}: {error}") from None


def _json_rows(path: str, text: str) -> Iterator[tuple[int, dict]]:
    """Yields the mappings in a file of JSON lines, each with its line number."""
    require(not text.lstrip().startswith("["), f"{path}: is one list; write a line of JSON for each row")
    for number, line in enumerate(text.split("\n"), 1):  # not `splitlines`, for a text may hold other line breaks
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}: line {number} is no JSON: {error}") from None
            require(isinstance(row, dict), f"{path}: line {number} is no mapping of names to values")
            yield number, row


def _mapping(columns: dict[str, str]) -> dict[str, str]:
    """Returns the known names, those of the setting first."""
    meant = set(columns.values())
    return {**columns, **{name: ours for name, ours in USUAL_NAMES.items() if ours not in meant and name not in columns}}


def _values(row: dict, mapping: dict[str, str]) -> dict[str, str]:
    """Returns a row's values as text, by our column names; the usual names are known in capitals too."""
    lowered = {name.lower(): value for name, value in row.items()}
    values: dict[str, str] = {}
    for name, ours in mapping.items():
        value = row.get(name, lowered.get(name))
        if ours not in values and value is not None:
            values[ours] = str(value).strip()
    return values


def _own_split(values: dict[str, str], where: str) -> str:
    name = values.get("split", "").lower()
    require(not name or name in SPLITS, f"{where}: the split {name} is none of {', '.join(SPLITS)}; map it away or rename it")
    return SPLITS.get(name, "")


def _require_whole(row: dict, where: str) -> None:
    """Refuses a row of a part of a recording, whose words are not those of the whole."""
    offset = row.get("offset")
    is_part = isinstance(offset, (int, float)) and offset > 0
    require(not is_part, f"{where}: begins {offset} s into its file; cut recordings into a file for each row")


def _place(path: str, names: list[str]) -> str:
    """Returns the folder of a manifest, or that below it, in which one of the first files that it names is.

    Raises:
        ConfigError: none of them is there.
    """
    first = [name for name in names if name][:PROBED_ROWS]
    folder = path.rpartition("/")[0]
    for place in (path, *(f"{folder}/{inner}/{path.rpartition('/')[2]}" for inner in AUDIO_FOLDERS)):
        if any(is_file(audio_path(name, place)) for name in first):
            return place
    missing = audio_path(first[0], path) if first else "a file"
    raise ConfigError(f"{path}: {missing} is not there; paths in a manifest begin at its folder")


def manifest_entries(path: str, columns: dict[str, str], split: str = "") -> list[Entry]:
    """Reads a manifest; paths in it begin at its folder, or at the folder of audio below it.

    Raises:
        ConfigError: the manifest cannot be read, lacks a column, or names no files that are there.
    """
    text, mapping, rows = read_text(path), _mapping(columns), []
    read = _table_rows if path.lower().endswith((".csv", ".tsv")) else _json_rows
    for number, row in read(path, text):
        values, where = _values(row, mapping), f"{path}: line {number}"
        for ours in ("wav", "text"):
            names, remedy = ", ".join(row), f"name it: columns={{NAME: {ours}}}"
            require(ours in values or bool(rows), f"{path}: none of its columns ({names}) is known as {ours}; {remedy}")
        _require_whole(row, where)
        rows.append(values | {"split": _own_split(values, where) or split})
    require(bool(rows), f"{path}: has no rows")
    place = _place(path, [values.get("wav", "") for values in rows])
    entries = [_manifest_entry(values, place) for values in rows]
    return entries if any("ID" in values for values in rows) else _with_own_ids(entries)


def _manifest_entry(values: dict[str, str], place: str) -> Entry:
    name = values.get("wav", "")
    return Entry(
        id=values.get("ID") or name.rpartition(".")[0] or name,
        audio=audio_path(name, place) if name else "",
        text=values.get("text", ""),
        speaker=values.get("spk_id", ""),
        source=values.get("source", ""),
        split=values["split"],
    )


def _with_own_ids(entries: list[Entry]) -> list[Entry]:
    """Numbers the rows that would share an ID, as the parts of a recording do."""
    seen: Counter[str] = Counter()
    numbered = []
    for entry in entries:
        seen[entry.id] += 1
        numbered.append(entry if seen[entry.id] == 1 else replace(entry, id=f"{entry.id}#{seen[entry.id]}"))
    return numbered


def _beside_entries(folder: str, files: list[str]) -> list[Entry]:
    """Lists the audio in a folder with the transcripts beside it: clip.txt for clip.wav."""
    present = {file.lower(): file for file in files}
    entries = []
    for file in files:
        if is_audio(file):
            stem = file.rpartition(".")[0]
            transcript = next((present[name] for suffix in TRANSCRIPTS if (name := stem.lower() + suffix) in present), "")
            inner = stem.removeprefix(folder.rstrip("/") + "/")
            entries.append(Entry(inner, file, transcript=transcript, split=_split_in(f"{inner.rpartition('/')[0]}/x")))
    require(bool(entries), f"{folder}: holds no audio, no Parquet files, and no metadata.csv or metadata.jsonl")
    manifests = [file for file in files if file.lower().endswith(MANIFESTS)] or [f"a manifest ({', '.join(MANIFESTS)})"]
    remedy = f"clip.wav wants its words in clip.txt; or name {manifests[0]}"
    require(any(entry.transcript for entry in entries), f"{folder}: no transcript lies beside the audio; {remedy}")
    return _with_own_ids(entries)


def _folder_entries(folder: str, columns: dict[str, str]) -> list[Entry]:
    files = folder_files(folder)
    metadata = [file for file in files if file.rpartition("/")[2] in METADATA]
    if metadata:
        return [
            entry
            for file in metadata
            for entry in manifest_entries(file, columns, _split_in(f"{file.removeprefix(folder).rpartition('/')[0]}/x"))
        ]
    shards = [file for file in files if file.endswith(".parquet")]
    arrow = next((file for file in files if file.endswith(".arrow")), "")
    require(not arrow or bool(shards), f"{arrow}: Arrow files of `datasets` are not read; write Parquet: Dataset.to_parquet")
    return _parquet_entries(f"{folder.rstrip('/')}/**/*.parquet", columns) if shards else _beside_entries(folder, files)


def shard_columns(columns: dict[str, str]) -> dict[str, str]:
    """Maps shards' column names, the usual ones too, to ours; a file's name tells the split, not a column."""
    return {name: ours for name, ours in _mapping(columns).items() if ours != "split"}


def _group_entries(group: RowGroup, columns: dict[str, str], split: str) -> Iterator[Entry]:
    for part in plan_pass([group]):
        for row, names in enumerate(read_names(part, columns), part.start):
            yield Entry(
                names.id,
                group.path,
                speaker=names.speaker,
                source=names.source,
                split=split,
                row_group=group.index,
                row=row,
                dataset=group.dataset,
                file_id=group.file_id,
            )


def _parquet_entries(dataset: str, columns: dict[str, str]) -> list[Entry]:
    reference = dataset_reference(dataset)
    split = SPLITS.get(reference[2].lower(), "") if reference else ""
    mapping = shard_columns(columns)
    groups = read_dataset(dataset, columns=mapping)
    return [entry for group in groups for entry in _group_entries(group, mapping, split or _split_in(group.path))]


def read_entries(name: str, columns: dict[str, str]) -> list[Entry]:
    """Lists the rows of one input, always in the same order.

    Raises:
        ConfigError: there is no such input, or it cannot be read.
    """
    path = absolute_data(name)
    if dataset_reference(path) and not is_file(path):
        return _parquet_entries(path, columns)
    if path.lower().endswith(MANIFESTS) and is_file(path):
        return manifest_entries(path, columns)
    filesystem, root = fsspec.core.url_to_fs(path)
    if filesystem.isdir(root):
        return _folder_entries(path, columns)
    files, known = glob_files(path), f"a manifest ({', '.join(MANIFESTS)}), a glob of Parquet files, or DATASET:CONFIG:SPLIT"
    require(bool(files), f"{name}: no such file or folder; give a folder of audio, {known}")
    others = [file for file in files if not file.endswith(".parquet")]
    require(not others, f"{others and others[0]}: is no input that is known; give a folder of audio, {known}")
    return _parquet_entries(path, columns)


def _stem(name: str) -> str:
    """Returns the name that counts an input's rows among several: that of its dataset, its folder or its manifest."""
    if name.lower().endswith(MANIFESTS):
        return PurePosixPath(name).stem
    return dataset_name(name if dataset_reference(name) else f"{name.rstrip('/')}/x")


def read_inputs(inputs: list[str], columns: dict[str, str]) -> list[Entry]:
    """Lists the rows of all inputs; if there are several, each input's name is the source of its rows."""
    require(bool(inputs), "inputs is empty; name folders, manifests or datasets: inputs=[recordings/,calls.csv]")
    entries = []
    for name in inputs:
        source = _stem(name) if len(inputs) > 1 else ""
        try:
            entries += [replace(entry, source=entry.source or source) for entry in read_entries(name, columns)]
        except ConfigError:
            raise
        except Exception as error:  # storage clients raise many kinds
            raise ConfigError(f"{name}: cannot be listed: {one_line(error)}") from None
    return entries
