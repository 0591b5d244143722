"""Configs from YAML files and the command line into the dataclasses of config.py, and back.

`load_config(TrainConfig, "configs/quickstart.yaml", ["num_workers=1", "data.batch_rows=8"])`: a file of differences
from the defaults, then dotted overrides. An unknown key, or a value of the wrong type, is a `ConfigError` of one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tiny_audio.config import ConfigError, require, storage_path
from tiny_audio.storage import put

T = TypeVar("T")


def _type_name(expected: Any) -> str:
    name = str(expected) if typing.get_args(expected) else expected.__name__
    return name.replace("NoneType", "null")


def _convert(value: Any, expected: Any, key: str) -> Any:
    """`value` as `expected`, or ConfigError. An int serves as a float; nothing else is coerced."""
    if dataclasses.is_dataclass(expected):
        require(isinstance(value, dict), f"{key} is a section: it wants keys below it, not {value!r}")
        return build(expected, value, key + ".")
    options = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    for option in options:
        origin = typing.get_origin(option)
        if origin is list and isinstance(value, list):
            return [_convert(item, typing.get_args(option)[0], key) for item in value]
        if origin is dict and isinstance(value, dict):
            of_values = typing.get_args(option)[1]
            return {_convert(name, str, key): _convert(item, of_values, f"{key}.{name}") for name, item in value.items()}
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if origin is None and type(value) is option:
            return value
    remedy = f"; write {key}=[{value}]" if typing.get_origin(options[0]) is list else ""
    raise ConfigError(f"{key} wants {' or '.join(_type_name(option) for option in options)}, not {value!r}{remedy}")


def build(cls: type[T], values: dict, prefix: str = "") -> T:
    """An instance of the dataclass `cls` from nested `values`; absent keys keep their defaults."""
    hints = typing.get_type_hints(cls)
    converted = {}
    for key, value in values.items():
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            remedy = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
            raise ConfigError(f"unknown key {prefix}{key}; {remedy}")
        converted[key] = _convert(value, hints[key], prefix + key)
    return cls(**converted)


def _read_yaml(path: Path) -> dict:
    require(path.is_file(), f"{path}: no such config file")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    require(isinstance(values, dict), f"{path}: a config is a mapping of keys to values")
    return values


def _parse_value(text: str) -> Any:
    """A command-line value as YAML reads it; YAML 1.1 takes 2e-3 for a string, people do not."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    require(bool(equals and key), f"{override!r} is not key=value")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        require(isinstance(values, dict), f"{key}: {section} is a value, not a section")
    try:
        values[last] = _parse_value(text)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: cannot read the value {text!r}") from None


def load_config(cls: type[T], path: str | Path, overrides: list[str] | None = None) -> T:
    """Defaults < YAML file < `key=value` overrides.

    Raises:
        ConfigError: no such file, an unknown key, a value of the wrong type or out of range.
    """
    values = _read_yaml(storage_path(str(path)))
    for override in overrides or []:
        _override(values, override)
    return build(cls, values)


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def changed_settings(path: str | Path, config: Any) -> list[str]:
    """What `save_config` wrote there and is otherwise now, as `key: then -> now`; empty if it wrote nothing."""
    path = storage_path(str(path))
    before, now = _flat(_read_yaml(path)) if path.is_file() else {}, _flat(dataclasses.asdict(config))
    return [f"{key}: {value} -> {now.get(key)}" for key, value in before.items() if value != now.get(key)]


def save_config(config: Any, path: str | Path) -> None:
    """The resolved config, every key, as YAML that `load_config` reads back."""
    put(storage_path(str(path)), yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).encode())
