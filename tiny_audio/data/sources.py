"""The source of a row, by which rows are counted, weighted and scored, and the ID of a row that has none.

LoquaciousSet mixes five corpora in one table with no column for it; the form of a row's ID tells. The forms of the first
four were reported for all dev and test rows. IDs of YODAS end in .wav; those of People's Speech may too, but are recognized
by their escapes for slashes and dots. IDs of other data tell nothing.
"""

from __future__ import annotations

import re

from tiny_audio.config import dataset_reference

_NUMBERS = re.compile(r"\d+(-\d+)+")  # speaker-chapter-utterance
_SHARD = re.compile(r"(.+)-\d+-of-\d+\.parquet")
_HUB_FOLDER = re.compile(r"hf://datasets/[^/]+/[^/]+/")
SPLITS = ("train", "training", "dev", "validation", "valid", "val", "eval", "test", "data")  # names that say no source
LOQUACIOUS = "loquaciousset"  # is in the hub id of LoquaciousSet, and in the folders of those who copied it


def loquacious_source(row_id: str) -> str:
    """Returns the corpus of LoquaciousSet that a row comes from.

    It is "voxpopuli", "commonvoice", "librispeech" (also for LibriHeavy, which has the same recordings and readers),
    "peoples_speech" or "yodas"; "all" for an ID of another form.
    """
    if "PLENARY" in row_id:
        return "voxpopuli"
    if "common_voice" in row_id:
        return "commonvoice"
    if _NUMBERS.fullmatch(row_id):
        return "librispeech"
    if "_SLASH_" in row_id or "_DOT_" in row_id:
        return "peoples_speech"
    if row_id.endswith(".wav"):
        return "yodas"
    return "peoples_speech" if row_id.endswith(".flac") else "all"


def _root(dataset: str) -> str:
    """The folder that a dataset is named after: that of its reference, or the last fixed one of a glob that is no split's."""
    reference = dataset_reference(dataset)
    if reference:
        return reference[0].rstrip("/")
    folders = dataset.split("/")[:-1]
    first = next((i for i, folder in enumerate(folders) if any(c in folder for c in "*?[")), len(folders))
    folders = folders[:first]
    while len(folders) > 1 and folders[-1].lower() in SPLITS:
        folders.pop()
    return "/".join(folders)


def dataset_name(dataset: str) -> str:
    """Names a dataset by its folder: "calls" for owner/calls:default:train and for /data/calls/train/*.parquet."""
    return _root(dataset).rpartition("/")[2] or "all"


def source_of(row_id: str, path: str, dataset: str = "") -> str:
    """Returns the source of a row whose shard has no column `source`.

    It is LoquaciousSet's corpus, where the dataset or the file is LoquaciousSet's; else the NAME of a shard
    NAME-00000-of-00007.parquet, unless that is a split's; else the dataset's name.
    """
    if LOQUACIOUS in f"{dataset} {path}".lower():
        return loquacious_source(row_id)
    shard = _SHARD.fullmatch(path.rpartition("/")[2])
    return shard[1] if shard and shard[1].lower() not in SPLITS else dataset_name(dataset or path)


def file_id(dataset: str, path: str) -> str:
    """Identifies a shard without IDs of its own by the dataset's name and the path in it, wherever the dataset lies."""
    root = _root(dataset or path)
    inner = path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else _HUB_FOLDER.sub("", path)
    return f"{dataset_name(dataset or path)}/{inner.removesuffix('.parquet')}"
