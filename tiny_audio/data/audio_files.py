"""Lists audio files by the names that people give: files, folders, globs, URLs, and - for standard input.

This file imports nothing slow.
"""

from __future__ import annotations

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tiny_audio.config import ConfigError, absolute, one_line, require
from tiny_audio.data.dataset_files import glob_files, num_hidden

USUAL = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".mpga", ".mpeg")
SUFFIXES = (*USUAL, ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".amr", ".3gp")
STDIN = "-"
WEB = ("http://", "https://")  # these URLs name files, since a server lists none


def is_audio(path: str) -> bool:
    """Says whether a file has an audio suffix."""
    return path.lower().endswith(SUFFIXES)


def folder_files(folder: str) -> list[str]:
    """Lists the files in a folder and its subfolders, sorted and without hidden ones; takes a local path or any fsspec URL."""
    filesystem, root = url_to_fs(folder)
    names = [name for name in sorted(filesystem.find(root)) if num_hidden(name) <= num_hidden(root)]
    return names if isinstance(filesystem, LocalFileSystem) else [filesystem.unstrip_protocol(name) for name in names]


def _files(name: str) -> list[str]:
    if name == STDIN or name.startswith(WEB):
        return [name]
    path = absolute(name)
    files = glob_files(path)
    if files or any(c in path for c in "*?["):
        require(bool(files), f"{name}: no such files")
        return files
    filesystem, root = url_to_fs(path)
    require(filesystem.isdir(root), f"{name}: no such file or folder")
    files = [file for file in folder_files(path) if is_audio(file)]
    require(bool(files), f"{name}: no audio in this folder (looked for {' '.join(SUFFIXES)})")
    return files


def find_audio(inputs: list[str]) -> list[str]:
    """Lists the files that names and globs match and the audio files in the folders named, each file once.

    Raises:
        ConfigError: nothing is named, a name matches nothing, a folder holds no audio, or storage does not answer.
    """
    require(bool(inputs), "inputs is empty; name audio files, folders, globs or URLs: inputs=[clip.wav,recordings/]")
    paths: list[str] = []
    for name in inputs:
        try:
            paths += _files(name)
        except ConfigError:
            raise
        except Exception as error:  # storage clients raise many kinds
            raise ConfigError(f"{name}: cannot be listed: {one_line(error)}") from None
    return list(dict.fromkeys(paths))
