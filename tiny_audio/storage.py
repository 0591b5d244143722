"""Where runs and models are kept: in a folder, or below a URL of object storage (s3://, gs://). The same calls serve both.

Files are written whole, since object storage can neither append nor rename, and it has no folders to make. Its listings are
asked for anew each time, because other processes write too.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from tiny_audio.config import ConfigError, TrainConfig, absolute, embedded_backbone, is_hub_id, one_line, require, storage_path


def is_local(path: Path | UPath) -> bool:
    """Whether a path is in this machine's file system, which may be a shared one."""
    return isinstance(path, Path)


def without_secrets(text: str) -> str:
    """Removes user names, passwords and signed queries from the URLs in a text."""
    if "://" not in text:
        return text
    return re.sub(r"\?\S*=\S*?(?=:?(\s|$))", "", re.sub(r"://[^/\s]*@", "://", text))


def _absolute_folder(name: str) -> str:
    """Makes a local folder absolute; hub ids, URLs and the names of embedded backbones stay as they are."""
    is_folder = Path(name).is_dir() and not embedded_backbone(name)
    return str(Path(name).resolve()) if is_folder else name


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Copies a config for workers, which run elsewhere: local paths are absolute, URLs and hub ids stay as they are."""
    encoder, decoder = map(_absolute_folder, (config.model.audio_model_id, config.model.text_model_id))
    model = dataclasses.replace(config.model, audio_model_id=encoder, text_model_id=decoder)
    return dataclasses.replace(config, runs_dir=absolute(config.runs_dir), data=config.data.with_absolute_paths(), model=model)


def output_path(name: str) -> Path:
    """The absolute path of a folder or file that a job writes its results to.

    Raises:
        ConfigError: `name` is a URL, or a path that `absolute` refuses.
    """
    require("://" not in name, f"{name}: results are written to folders; only runs_dir, model and data may be URLs")
    return Path(absolute(name))


def require_model(model: str) -> str:
    """The absolute path of a saved model's folder; a URL or a hub id (OWNER/NAME) is returned as it is.

    Raises:
        ConfigError: there is no such folder, and the name cannot be a hub id.
    """
    if "://" in model:
        require((storage_path(model) / "config.json").is_file(), f"{model}: no saved model there")
        return model
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return str(folder.resolve())
    remedy = "train one first (make quickstart), or name its folder or hub id"
    require(is_hub_id(model), f"{model}: no saved model there; {remedy}")
    return model


def put(path: Path | UPath, data: bytes) -> None:
    """Writes a file whole or not at all, so that it survives a power cut, and makes its folder."""
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
    """Copies a local folder and all that is in it."""
    for file in sorted(path for path in Path(source).rglob("*") if path.is_file()):
        put(target / file.relative_to(source).as_posix(), file.read_bytes())


def remove_folder(folder: Path | UPath) -> None:
    """Deletes a folder and everything in it."""
    if is_local(folder):
        shutil.rmtree(folder)
    else:
        folder.fs.rm(folder.path, recursive=True)


def list_folder(folder: Path | UPath) -> list[Path | UPath]:
    """The files and folders in a folder, sorted; an empty list if there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # the second is how UPath says the first
        return []


def read_folder(folder: Path | UPath, known: set[str]) -> dict[str, bytes]:
    """Fetches the files of a folder on object storage in parallel, except the `known` ones; contents by name, sorted."""
    paths = {path.name: path.path for path in list_folder(folder) if path.name not in known}
    contents = folder.fs.cat(list(paths.values())) if paths else {}
    return {name: contents[path] for name, path in paths.items()}


@contextmanager
def local_folder(name: str) -> Iterator[str]:
    """Copies the folder at a URL to this machine for as long as the context lasts; any other name is yielded as it is."""
    if "://" not in name:
        yield name
        return
    with tempfile.TemporaryDirectory() as copy:
        folder = storage_path(name)
        folder.fs.get(f"{folder.path.rstrip('/')}/", copy, recursive=True)  # what is in it, as the slash says
        yield copy


@contextmanager
def written_folder(folder: Path | UPath) -> Iterator[str]:
    """Yields a local folder to write files to; they are in `folder` when the context ends."""
    if is_local(folder):
        yield str(folder)
        return
    with tempfile.TemporaryDirectory() as draft:
        yield draft
        put_folder(draft, folder)


@contextmanager
def said_in_one_line(path: Path | UPath) -> Iterator[None]:
    """Turns an error of storage (no such bucket, no credentials, no network) into a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read or written: {one_line(error)}") from error
