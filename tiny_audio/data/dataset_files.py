"""Lists the files of a glob, and the Parquet files of DATASET:CONFIG:SPLIT.

The latter go by the patterns in a dataset's README.md, as in the `datasets` library. Nothing but that
README is fetched: no data are downloaded or extracted, and nothing that comes with them is run. A folder need not hold all
of the dataset, while `datasets.load_dataset_builder` would want the first config's files too.
"""

from __future__ import annotations

from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tiny_audio.config import ConfigError, is_hub_id, one_line, require

README = "README.md"


def _find_readme(dataset: str) -> tuple[Path, str]:
    """Finds a dataset's README.md; returns it and the root of the paths in it."""
    folder = Path(dataset)
    if folder.is_dir():
        require((folder / README).is_file(), f"{dataset}: has no {README} that says its configs; copy it too, or give a glob")
        return folder / README, dataset
    require(is_hub_id(dataset), f"{dataset}: no such folder, and no hub id (OWNER/NAME)")
    from huggingface_hub import hf_hub_download

    readme = Path(hf_hub_download(dataset, README, repo_type="dataset"))
    return readme, f"hf://datasets/{dataset}@{readme.parent.name}"  # the commit, whose files never change


def _patterns(card: dict) -> dict[str, dict[str, list[str]]]:
    """What a dataset's README says of its files: config -> split -> patterns of paths. A list without splits is train's.

    See https://huggingface.co/docs/hub/datasets-manual-configuration
    """

    def as_list(value) -> list:
        return value if isinstance(value, list) else [value]

    configs: dict[str, dict[str, list[str]]] = {}
    for config in card.get("configs") or []:
        splits = configs[config["config_name"]] = {}
        for entry in as_list(config.get("data_files") or []):
            entry = {"split": "train", "path": entry} if isinstance(entry, str) else entry
            splits[entry["split"]] = splits.get(entry["split"], []) + as_list(entry["path"])
    return configs


def num_hidden(path: str) -> int:
    """Counts the folders and the file in a path that are hidden, as Arrow and Spark take them: they begin with "." or "_"."""
    return sum(part.startswith((".", "_")) and part not in (".", "..") for part in path.split("/"))


def glob_files(pattern: str) -> list[str]:
    """Lists the files of a glob, or the one of that name, local or of any fsspec URL; sorted.

    Hidden files, whose name or folder begins with "." or "_", are left out unless the glob names them: other writers leave
    their notes there, as Spark's _SUCCESS, and their unfinished work.
    """
    filesystem, path = url_to_fs(pattern)
    names = [path] if filesystem.isfile(path) else []  # a file's own name may hold a bracket
    if not names and any(c in path for c in "*?["):
        entries = filesystem.glob(path, detail=True)
        names = [name for name in sorted(entries) if entries[name]["type"] == "file" and num_hidden(name) <= num_hidden(path)]
    return [filesystem.unstrip_protocol(name) if "://" in pattern else name for name in names]


def is_file(path: str) -> bool:
    """Whether there is a file of this path or URL."""
    filesystem, name = url_to_fs(path)
    return filesystem.isfile(name)


def is_folder(path: str) -> bool:
    """Whether there is a folder of this path or URL."""
    filesystem, name = url_to_fs(path)
    return filesystem.isdir(name)


def _parquet_files(root: str, pattern: str) -> list[str]:
    """The Parquet files below `root` that match; no hidden ones (`.cache/`, `_temporary/`) unless the pattern names them.

    Raises:
        FileNotFoundError: there are none.
    """
    fs, path = url_to_fs(pattern if "://" in pattern else f"{root}/{pattern}")
    files = [file for file in fs.glob(path) if file.endswith(".parquet") and num_hidden(file) <= num_hidden(path)]
    if not files:
        raise FileNotFoundError(path)
    return [file if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(file) for file in files]


def _list_files(dataset: str, config: str, split: str) -> list[str]:
    from huggingface_hub import DatasetCard  # imported here: a glob does not need to wait for it

    readme, root = _find_readme(dataset)
    configs = _patterns(DatasetCard.load(readme).data.to_dict())
    name = f"{dataset}:{config}:{split}"
    require(config in configs, f"{name}: no such config; known: {', '.join(configs) or 'none'}")
    patterns = configs[config]
    require(split in patterns, f"{name}: no such split; known: {', '.join(patterns) or 'none'}")
    try:
        paths = [path for pattern in patterns[split] for path in _parquet_files(root, pattern)]
    except FileNotFoundError:
        raise ConfigError(f"{name}: {root} has no Parquet files {' '.join(patterns[split])}") from None
    return sorted(paths)


def dataset_files(dataset: str, config: str, split: str) -> list[str]:
    """Lists the files of a split as paths, or as hf:// URLs that name the commit; sorted.

    Args:
        dataset: a local folder or a hub id, OWNER/NAME.

    Raises:
        ConfigError: there is no such dataset, config or split (the known ones are listed), or the hub is out of reach.
    """
    try:
        return _list_files(dataset, config, split)
    except ConfigError:
        raise
    except Exception as error:  # the hub's client raises many kinds, and none is a defect of ours
        reason = one_line(error).partition(". ")[0]
        if Path(dataset).is_dir():
            raise ConfigError(f"{dataset}/{README}: not readable as a dataset's: {reason}") from None
        remedy = "without a network, give a local folder of the dataset in place of its hub id"
        raise ConfigError(f"{dataset}: not found on the hub, or no way to it; {remedy} ({reason})") from None
