"""The row groups of Parquet shards, read from their footers alone, and the shards that are missing or broken."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from tiny_audio.config import ConfigError, dataset_reference, one_line, require
from tiny_audio.data.dataset_files import dataset_files
from tiny_audio.data.plan import RowGroup

COLUMNS = ("ID", "wav", "text")  # of LoquaciousSet; `duration`, `spk_id` and `sex` may be absent
FOOTER_THREADS = 16
NAMED_FILES = 3  # broken files that a message names


def list_shards(pattern: str) -> list[str]:
    """Lists the files of a glob, local or of any fsspec URL (hf://, s3://, gs://), or of DATASET:CONFIG:SPLIT; sorted.

    Raises:
        ConfigError: nothing matches; see also `dataset_files`.
    """
    reference = dataset_reference(pattern)
    if reference:
        return dataset_files(*reference)
    paths = glob_files(pattern)
    remedy = "give a glob of files, or DATASET:CONFIG:SPLIT, as speechbrain/LoquaciousSet:small:train; make quickstart makes one"
    require(bool(paths), f"{pattern}: no such Parquet shards; {remedy}")
    return paths


def glob_files(pattern: str) -> list[str]:
    """Lists the files of a glob, or the one of that name, local or of any fsspec URL; sorted."""
    filesystem, path = fsspec.core.url_to_fs(pattern)
    names = sorted(filesystem.glob(path)) if any(c in path for c in "*?[") else [path] * filesystem.isfile(path)
    return [filesystem.unstrip_protocol(name) if "://" in pattern else name for name in names]


class BrokenFile(ConfigError):
    """A shard that is missing, or is no whole Parquet file."""


def is_damage(error: Exception, path: str) -> bool:
    """Whether an error means that a file is not as it was written; else its storage did not answer, and may answer later.

    Arrow raises ArrowInvalid for damage, but for some damage OSError, as storage does; local files always answer.
    """
    return isinstance(error, (FileNotFoundError, pa.ArrowInvalid)) or ("://" not in path and type(error) is OSError)


def _read_footer(path: str) -> list[RowGroup] | BrokenFile:
    try:
        with fsspec.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            missing = [name for name in COLUMNS if name not in parquet.schema_arrow.names]
            require(not missing, f"{path}: lacks the column {missing and missing[0]}; LoquaciousSet's are {', '.join(COLUMNS)}")
            wav = parquet.schema_arrow.field("wav").type
            has_bytes = pa.types.is_struct(wav) and wav.get_field_index("bytes") >= 0
            require(has_bytes, f"{path}: the column wav is {wav}; it must be a struct of `bytes` and `path`")
            footer = parquet.metadata
            return [RowGroup(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    except FileNotFoundError:
        return BrokenFile(f"{path}: no such file")
    except Exception as error:
        if not is_damage(error, path):
            raise
        return BrokenFile(f"{path}: not a Parquet file, or a truncated one ({one_line(error)})")


def whole_footers(
    paths: list[str], max_broken_share: float = 0.0, warn: Callable[[str], None] = lambda line: None
) -> dict[str, list[RowGroup]]:
    """Reads the row groups of each file, in order, and leaves the broken files out.

    Args:
        max_broken_share: the share of the files that may be missing or damaged.
        warn: is called with one line that names them.

    Raises:
        ConfigError: more files are missing or damaged, or one lacks a column.
    """
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = dict(zip(paths, pool.map(_read_footer, paths), strict=True))
    broken = [footer for footer in footers.values() if isinstance(footer, BrokenFile)]
    named = "; ".join(map(str, broken[:NAMED_FILES])) + f"; and {len(broken) - NAMED_FILES} more" * (len(broken) > NAMED_FILES)
    limit = f"; these are more than data.max_reject_share={max_broken_share:g} of {len(paths)} files" * (max_broken_share > 0)
    require(len(broken) <= max_broken_share * len(paths), named + limit)
    if broken:
        warn(named)
    return {path: footer for path, footer in footers.items() if not isinstance(footer, BrokenFile)}


def read_footers(
    paths: list[str], max_rows: int | None = None, max_broken_share: float = 0.0, warn: Callable[[str], None] = lambda line: None
) -> list[RowGroup]:
    """Reads the row groups of the shards in order, as far as the first `max_rows` rows reach. Else as `whole_footers`."""
    footers = whole_footers(paths, max_broken_share, warn)
    groups = [group for footer in footers.values() for group in footer if group.num_rows]
    if max_rows is None:
        return groups
    kept, left = [], max_rows
    for group in groups:
        if left > 0:
            kept.append(RowGroup(group.path, group.index, min(group.num_rows, left)))
            left -= group.num_rows
    return kept


def read_mix(
    datasets: dict[str, float],
    max_rows: int | None = None,
    max_broken_share: float = 0.0,
    warn: Callable[[str], None] = lambda line: None,
) -> list[RowGroup]:
    """Reads the row groups of several datasets with their weights, from each the first `max_rows` rows. Else as `read_footers`.

    Raises:
        ConfigError: as `list_shards` and `read_footers`.
    """
    return [
        replace(group, dataset=name, weight=weight)
        for name, weight in datasets.items()
        for group in read_footers(list_shards(name), max_rows, max_broken_share, warn)
    ]
