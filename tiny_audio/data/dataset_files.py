"""The Parquet files of DATASET:CONFIG:SPLIT, as the `datasets` library finds them by a dataset's README.md.

Only that README is fetched, and files are listed: no data are downloaded or extracted, and no code that comes with them is
run. A folder need not hold the whole dataset, whereas `load_dataset_builder` would want the first config's files too.
"""

from __future__ import annotations

from pathlib import Path

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


def _list_files(dataset: str, config: str, split: str) -> list[str]:
    from datasets.data_files import resolve_pattern, sanitize_patterns  # imported here: a glob does not need to wait for it
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    readme, root = _find_readme(dataset)
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(readme).data)
    name = f"{dataset}:{config}:{split}"
    require(config in configs, f"{name}: no such config; known: {', '.join(configs) or 'none'}")
    patterns = sanitize_patterns(configs[config].get("data_files", {}))
    require(split in patterns, f"{name}: no such split; known: {', '.join(patterns) or 'none'}")
    try:
        paths = [path for pattern in patterns[split] for path in resolve_pattern(pattern, root, [".parquet"])]
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
