"""Finds the columns of Parquet shards, checks their types and reads their values.

The columns are LoquaciousSet's; a setting maps other names to them, as in {audio: wav, sentence: text}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from tiny_audio.config import require

REQUIRED = ("wav", "text")
OPTIONAL = ("ID", "spk_id", "duration", "source")
SCHEMA = pa.schema(  # of the shards that we write
    [
        ("ID", pa.string()),
        ("duration", pa.float32()),
        ("wav", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("spk_id", pa.string()),
        ("sex", pa.string()),
        ("text", pa.string()),
    ]
)
Columns = Mapping[str, str]  # the file's column name -> ours


def column_names(schema: pa.Schema, columns: Columns) -> dict[str, str]:
    """Maps our column names to the file's own: the first one that `columns` lists, or else the same name."""
    names = {}
    for ours in (*REQUIRED, *OPTIONAL):
        candidates = [*(name for name, meant in columns.items() if meant == ours), ours]
        present = [name for name in candidates if name in schema.names and (name == ours or name in columns)]
        present = [name for name in present if columns.get(name, ours) == ours]  # a column that is mapped away is not ours
        if present:
            names[ours] = present[0]
    return names


def _is_bytes(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return binary or pa.types.is_fixed_size_binary(kind) or pa.types.is_null(kind)


def _is_text(kind: pa.DataType) -> bool:
    """Says whether a column is text; that of older writers is bytes, which `texts` reads as UTF-8."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or _is_bytes(kind)


def audio_parts(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Returns the types of `bytes` and `path`: fields of the audio's struct, or the column itself if it holds one of them."""
    if pa.types.is_struct(kind):
        return {field.name: field.type for field in kind.fields if field.name in ("bytes", "path")}
    return {"bytes" if _is_bytes(kind) else "path": kind}


def _is_audio(kind: pa.DataType) -> bool:
    fits = {"bytes": _is_bytes, "path": _is_text}
    parts = audio_parts(kind)
    return bool(parts) and all(fits[name](part) for name, part in parts.items())


def _is_name(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind)


def require_columns(path: str, schema: pa.Schema, columns: Columns) -> dict[str, str]:
    """Returns the `column_names` of a file that has all columns it needs, of types that can be read.

    Raises:
        ConfigError: the file lacks a column, or a column has another type.
    """
    names = column_names(schema, columns)
    missing = [name for name in REQUIRED if name not in names]
    remedy = "map yours by columns={audio: wav, sentence: text} (in a training: data.columns)"
    require(not missing, f"{path}: lacks the column {missing and missing[0]}; it has {', '.join(schema.names)}; {remedy}")
    twice = [name for name in names.values() if schema.names.count(name) > 1]
    require(not twice, f"{path}: the column {twice and twice[0]} is there twice; rename one of them")
    checks = {
        "wav": (_is_audio, "a struct of `bytes` and `path`, or one of these alone"),
        "text": (_is_text, "text"),
        "ID": (_is_name, "text or whole numbers"),
    }
    for ours, (fits, wanted) in checks.items():
        if ours in names:
            kind = schema.field(names[ours]).type
            require(fits(kind), f"{path}: the column {names[ours]} is {kind}; it must be {wanted}")
    return names


def texts(column: pa.ChunkedArray | pa.Array) -> list[str | None]:
    """Returns the strings of a column, with None for nulls and invalid UTF-8, so that a bad row costs no other."""
    strings: list[str | None] = []
    column = column.cast(pa.string()) if pa.types.is_integer(column.type) else column
    for value in column.cast(pa.binary()).to_pylist():
        try:
            strings.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            strings.append(None)
    return strings


def _number(value: str | float | None) -> float | None:
    try:
        number = float(value or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def numbers(column: pa.Array) -> list[float | None]:
    """Returns the numbers of a column, with None for other values: the column is optional, so they cost no row."""
    try:
        values = texts(column) if _is_text(column.type) else column.cast(pa.float64(), safe=False).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = [None] * len(column)
    return [_number(value) for value in values]


def names_or_none(column: pa.Array) -> list[str | None]:
    """Returns the strings of an optional column, or None for each row if it holds no text."""
    return texts(column) if _is_name(column.type) else [None] * len(column)


def audio_values(column: pa.Array) -> list[memoryview | str | None]:
    """Returns each row's encoded audio as a view of the column, or the path or URL of its file if there is nothing else."""
    in_struct = pa.types.is_struct(column.type)
    parts = {name: pc.struct_field(column, name) if in_struct else column for name in audio_parts(column.type)}
    encoded = parts.get("bytes", pa.nulls(len(column))).cast(pa.large_binary())
    paths = texts(parts.get("path", pa.nulls(len(column))))
    return [memoryview(value.as_buffer()) if value.is_valid else path or None for value, path in zip(encoded, paths, strict=True)]
