"""Where a run is kept: a folder, or a prefix on object storage (s3://, gs://), by the same paths. Files are written whole.

Object storage has no folders to make, no renaming and no appending. Lists are asked for anew each time, for others write too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from tiny_audio.config import ConfigError, storage_path


def is_local(path: Path | UPath) -> bool:
    """Whether it is a folder or file of this machine's, shared ones too."""
    return isinstance(path, Path)


def put(path: Path | UPath, data: bytes) -> None:
    """Writes a file whole or not at all, and safe from a power cut; makes its folder."""
    if not is_local(path):
        path.fs.pipe_file(path.path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")  # a name that readers of Parquet folders pass over
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # some file systems say only here that they are full
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # for its new entry
    finally:
        os.close(folder)


def put_folder(source: str, target: Path | UPath) -> None:
    """Copies the files of a local folder that has no folders in it."""
    for file in sorted(Path(source).iterdir()):
        put(target / file.name, file.read_bytes())


def remove_folder(folder: Path | UPath) -> None:
    """Deletes a folder and what is in it."""
    if is_local(folder):
        shutil.rmtree(folder)
    else:
        folder.fs.rm(folder.path, recursive=True)


def list_folder(folder: Path | UPath) -> list[Path | UPath]:
    """What is in a folder, sorted; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # the second is how UPath says the first
        return []


def read_folder(folder: Path | UPath, known: set[str]) -> dict[str, bytes]:
    """The files of a folder on object storage but those `known`, by name, sorted; fetched side by side."""
    paths = {path.name: path.path for path in list_folder(folder) if path.name not in known}
    found = folder.fs.cat(list(paths.values())) if paths else {}
    return {name: found[path] for name, path in paths.items()}


@contextmanager
def local_folder(name: str) -> Iterator[str]:
    """A folder of files, by URL, as a copy that lasts as long as the context; any other name as it is."""
    if "://" not in name:
        yield name
        return
    with tempfile.TemporaryDirectory() as copy:
        for file, data in read_folder(storage_path(name), set()).items():
            (Path(copy) / file).write_bytes(data)
        yield copy


@contextmanager
def written_folder(folder: Path | UPath) -> Iterator[str]:
    """A local folder to write files to, which will be in `folder` when the context ends."""
    if is_local(folder):
        yield str(folder)
        return
    with tempfile.TemporaryDirectory() as made:
        yield made
        put_folder(made, folder)


@contextmanager
def said_in_one_line(path: Path | UPath) -> Iterator[None]:
    """What storage refuses (no such bucket, no credentials, no network) becomes a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read or written: {' '.join(str(error).split())}") from error
