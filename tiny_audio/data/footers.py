"""Reads the row groups of Parquet shards from their footers alone, and finds shards that are missing or broken."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.config import ConfigError, dataset_reference, one_line, require
from tiny_audio.data.columns import Columns, audio_parts, audio_values, require_columns
from tiny_audio.data.dataset_files import dataset_files, glob_files, is_file, is_folder
from tiny_audio.data.plan import RowGroup
from tiny_audio.data.shards import LARGE_GROUP_BYTES, audio_path
from tiny_audio.data.sources import file_id

FOOTER_THREADS = 16
NAMED_FILES = 3  # broken files that a message names
PROBED_ROWS = 3  # rows of a shard without audio whose files are checked
LARGE_REMEDY = "every window reads such a row group from its start: write it anew with row_group_size=100 (ray_jobs.prepare does)"
Warn = Callable[[str], None]


def silent(line: str) -> None:
    """Takes a warning and says nothing, where nobody reads it."""


def list_shards(pattern: str) -> list[str]:
    """Lists and sorts the files of a glob, local or of any fsspec URL (hf://, s3://, gs://), or of DATASET:CONFIG:SPLIT.

    Raises:
        ConfigError: nothing matches; see also `dataset_files`.
    """
    reference = dataset_reference(pattern)
    if reference:
        return dataset_files(*reference)
    paths = glob_files(pattern)
    require(
        bool(paths) or not is_folder(pattern), f"{pattern}: is a folder; name the files in it: {pattern.rstrip('/')}/*.parquet"
    )
    remedy = "give a glob of files, or DATASET:CONFIG:SPLIT, as speechbrain/LoquaciousSet:small:train; make quickstart makes one"
    require(bool(paths), f"{pattern}: no such Parquet shards; {remedy}")
    return paths


class BrokenFile(ConfigError):
    """Reports a shard that is missing, is not a whole Parquet file, or names audio files that are missing."""


def is_damage(error: Exception, path: str) -> bool:
    """Says whether an error means that a file is missing or damaged; otherwise its storage did not answer, and may answer later.

    Arrow raises ArrowInvalid for damage, but for some damage OSError, as storage does; local files always answer.
    """
    return isinstance(error, (FileNotFoundError, pa.ArrowInvalid)) or ("://" not in path and type(error) is OSError)


def _names_files(parquet: pq.ParquetFile, wav: str) -> bool:
    """Says whether a shard names audio files instead of holding audio, by its column's type or its statistics' bytes."""
    footer, kind = parquet.metadata, parquet.schema_arrow.field(wav).type
    if "bytes" not in audio_parts(kind):
        return True
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        leaves = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
        statistics = leaves.get(f"{wav}.bytes", leaves.get(wav))
        if not statistics or not statistics.has_null_count or statistics.null_count < group.num_rows:
            return False
    return True


def _missing_audio(path: str, parquet: pq.ParquetFile, wav: str) -> str:
    """Returns the file that a shard names for its first row, if that and the next rows' files are missing; else ""."""
    batch = next(parquet.iter_batches(PROBED_ROWS, columns=[wav]), None)
    named = [value for value in audio_values(batch.column(wav)) if isinstance(value, str)] if batch else []
    files = [audio_path(name, path) for name in named]
    return files[0] if files and not any(map(is_file, files)) else ""


@dataclass
class Footer:
    """Holds what is known of a shard before its rows are read."""

    groups: list[RowGroup]
    largest_bytes: int  # size of the largest row group


def _read_footer(path: str, dataset: str, columns: Columns) -> Footer | BrokenFile:
    try:
        with fsspec.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            names, footer = require_columns(path, parquet.schema_arrow, columns), parquet.metadata
            missing = _missing_audio(path, parquet, names["wav"]) if _names_files(parquet, names["wav"]) else ""
            if missing:
                remedy = "put it there, or write the audio into the shards (ray_jobs.prepare does)"
                return BrokenFile(f"{path}: holds no audio but names files, and {missing} is not there; {remedy}")
            of_file, groups = "" if "ID" in names else file_id(dataset, path), map(footer.row_group, range(footer.num_row_groups))
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
            row_groups = [RowGroup(path, i, num_rows, dataset, file_id=of_file) for i, (num_rows, _) in enumerate(sizes)]
            return Footer(row_groups, max((num_bytes for _, num_bytes in sizes), default=0))
    except FileNotFoundError:
        return BrokenFile(f"{path}: no such file")
    except Exception as error:
        if not is_damage(error, path):
            raise
        return BrokenFile(f"{path}: not a Parquet file, or a truncated one ({one_line(error)})")


def _large_groups(footers: dict[str, Footer]) -> str:
    """Returns a line on the files whose row groups are too large to be read well, or "" if there are none."""
    large = [path for path, footer in footers.items() if footer.largest_bytes > LARGE_GROUP_BYTES]
    if not large:
        return ""
    path = max(large, key=lambda path: footers[path].largest_bytes)
    more = f" (and {len(large) - 1} more files)" * (len(large) > 1)
    return f"{path}{more}: has a row group of {footers[path].largest_bytes / 1e9:.1f} GB; {LARGE_REMEDY}"


def whole_footers(
    paths: list[str],
    max_broken_share: float = 0.0,
    warn: Warn = silent,
    *,
    dataset: str = "",
    columns: Columns = {},  # noqa: B006 (never changed)
    warn_of_size: Warn = silent,
) -> dict[str, list[RowGroup]]:
    """Reads the row groups of each file, in order, and leaves the broken files out.

    Args:
        max_broken_share: the share of the files that may be missing or damaged, or name audio files that are.
        warn: is called with one line that names them.
        dataset: as the config names it.
        columns: the files' names of columns -> ours.
        warn_of_size: is called with one line on row groups that are too large to be read well.

    Raises:
        ConfigError: more files are missing or damaged, or one lacks a column, or has one of another type.
    """
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        read = pool.map(lambda path: _read_footer(path, dataset, columns), paths)
        footers = dict(zip(paths, read, strict=True))
    broken = [footer for footer in footers.values() if isinstance(footer, BrokenFile)]
    named = "; ".join(map(str, broken[:NAMED_FILES])) + f"; and {len(broken) - NAMED_FILES} more" * (len(broken) > NAMED_FILES)
    limit = f"; these are more than data.max_reject_share={max_broken_share:g} of {len(paths)} files" * (max_broken_share > 0)
    require(len(broken) <= max_broken_share * len(paths), named + limit)
    if broken:
        warn(named)
    whole = {path: footer for path, footer in footers.items() if isinstance(footer, Footer)}
    if _large_groups(whole):
        warn_of_size(_large_groups(whole))
    return {path: footer.groups for path, footer in whole.items()}


def read_footers(paths: list[str], max_rows: int | None = None, *options, **keywords) -> list[RowGroup]:
    """Reads the row groups of the shards in order, up to the first `max_rows` rows; otherwise works as `whole_footers`."""
    footers = whole_footers(paths, *options, **keywords)
    groups = [group for footer in footers.values() for group in footer if group.num_rows]
    if max_rows is None:
        return groups
    kept, left = [], max_rows
    for group in groups:
        if left > 0:
            kept.append(replace(group, num_rows=min(group.num_rows, left)))
            left -= group.num_rows
    return kept


def read_dataset(dataset: str, max_rows: int | None = None, *options, **keywords) -> list[RowGroup]:
    """Reads the row groups of a glob or DATASET:CONFIG:SPLIT, as `list_shards` and `read_footers` do."""
    return read_footers(list_shards(dataset), max_rows, *options, dataset=dataset, **keywords)


def read_mix(datasets: dict[str, float], max_rows: int | None = None, *options, **keywords) -> list[RowGroup]:
    """Reads the row groups of several datasets with their weights, up to `max_rows` rows of each.

    Raises:
        ConfigError: as `read_dataset`, and where files of two datasets would give their rows the same IDs.
    """
    groups = [
        replace(group, weight=weight)
        for name, weight in datasets.items()
        for group in read_dataset(name, max_rows, *options, **keywords)
    ]
    files: dict[str, str] = {}
    for group in groups:
        other = files.setdefault(group.file_id, group.path)
        remedy = "their rows have no IDs, and would get the same ones: rename a folder, or map a column to ID"
        require(not group.file_id or other == group.path, f"{other} and {group.path}: {remedy}")
    return groups
