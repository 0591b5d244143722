"""The settings of batch transcription, and the files that they name; it imports nothing that takes long."""

from __future__ import annotations

import os
from dataclasses import field
from pathlib import Path

from tiny_audio.config import AtLeastOne, Text, absolute, require, settings

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")


@settings()
class TranscribeConfig:
    """The files to transcribe, and the model to do it with."""

    model: Text = "runs/quickstart/model"  # a folder that training exported, its URL, or a hub id
    inputs: list[Text] = field(default_factory=list)  # audio files, and folders that are searched for them
    output: Text = "transcripts.jsonl"  # the file for the transcripts, a line of JSON for each input
    num_actors: AtLeastOne = 1  # copies of the model that transcribe side by side
    use_gpu: bool = False  # gives each actor a GPU
    num_threads: AtLeastOne = field(default_factory=lambda: os.cpu_count() or 1)  # CPU threads of an actor, without a GPU
    batch_rows: AtLeastOne = 64  # clips that an actor is given at a time


def find_audio(inputs: list[str]) -> list[str]:
    """Lists the files named, and the files with an audio suffix in the folders named, sorted within each folder.

    Raises:
        ConfigError: nothing is named, a path does not exist, or a folder holds no audio.
    """
    require(bool(inputs), "inputs is empty; name audio files or folders: inputs=[clip.wav,recordings/]")
    paths: list[str] = []
    for name in inputs:
        path = Path(absolute(name))
        require(path.exists(), f"{name}: no such file or folder")
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        require(bool(files), f"{name}: no audio in this folder (looked for {' '.join(SUFFIXES)})")
        paths += [str(file) for file in files]
    return list(dict.fromkeys(paths))
