"""Reads settings from a YAML file and the command line into their dataclass, and writes them back.

`load_config(TrainConfig, "configs/quickstart.yaml", ["num_workers=1", "data.batch_rows=8"])` takes the defaults, then the
differences that the file holds, then the dotted overrides. Whatever is wrong is a `ConfigError` of one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from upath import UPath

from tiny_audio.config import ConfigError, one_line, require, storage_path
from tiny_audio.storage import put, said_in_one_line

T = TypeVar("T")
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)e[-+]?\d+|[-+]?inf|nan", re.IGNORECASE)


class _Int(int):
    """A whole number that remembers how it was written, because as a name 007 is not 7."""

    text: str

    def __str__(self) -> str:
        return self.text


class _Float(float):
    """A number that remembers how it was written, because as a name 1e3 is not 1000.0."""

    text: str

    def __str__(self) -> str:
        return self.text


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Int:
    is_decimal = re.fullmatch(r"[-+]?[0-9][0-9_]*", node.value)  # 010 is ten, not YAML 1.1's octal eight
    number = _Int(int(node.value) if is_decimal else loader.construct_yaml_int(node))
    number.text = node.value
    return number


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Float:
    number = _Float(node.value if _FLOAT.fullmatch(node.value) else loader.construct_yaml_float(node))
    number.text = node.value
    return number


def _resolvers() -> dict[str, list[tuple[str, re.Pattern]]]:
    """YAML 1.1's rules for plain scalars, by first character: without dates and base 60 (1:30), and with 1e-4 as a number."""
    rules = {
        first: [(tag, re.compile(f"(?!.*:){rule.pattern}", rule.flags)) for tag, rule in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789iInN":
        rules[first] = [*rules.get(first, []), ("tag:yaml.org,2002:float", re.compile(f"(?:{_FLOAT.pattern})$", re.IGNORECASE))]
    return rules


class _Loader(yaml.SafeLoader):
    """The one reader of YAML, in files and on the command line; a key may stand once in a mapping."""

    yaml_implicit_resolvers = _resolvers()
    yaml_constructors = {  # noqa: RUF012 (PyYAML's own way)
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": _construct_int,
        "tag:yaml.org,2002:float": _construct_float,
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    """The value of a YAML text, or a ConfigError that says on which line it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        remedy = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"line {error.problem_mark.line + 1}: {error.problem}{remedy}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(one_line(error)) from None


def _read_text(path: Path | UPath) -> str:
    with said_in_one_line(path):
        require(not path.is_dir(), f"{path}: is a folder, not a config file")
        require(path.is_file(), f"{path}: no such config file")
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8; save the file in that encoding") from None


def _read_yaml(path: Path | UPath) -> dict:
    text = _read_text(path)
    try:
        values = _parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    values = {} if values is None else values
    require(isinstance(values, dict), f"{path}: a config is a mapping of keys to values")
    return values


def sections(cls: type) -> dict[str, type]:
    """The fields of a settings class that are settings themselves, with their classes."""
    factories = {field.name: field.default_factory for field in dataclasses.fields(cls)}
    return {name: factory for name, factory in factories.items() if dataclasses.is_dataclass(factory)}


def build(cls: type[T], values: dict, prefix: str = "") -> T:
    """Makes settings from nested `values`; absent keys keep their defaults.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or values that exclude each other.
    """
    known, checked = [field.name for field in dataclasses.fields(cls)], {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown key {prefix}{key}; {remedy}")
        section = sections(cls).get(key)
        require(not section or isinstance(value, dict), f"{prefix}{key} is a section: it wants keys below it, not {value!r}")
        checked[key] = build(section, value, f"{prefix}{key}.") if section else value
    return cls(**checked)


def _override(cls: type, values: dict, override: str) -> None:
    """Sets one `key=value` in nested `values`. The last one of a key counts."""
    key, equals, text = override.partition("=")
    require(bool(equals and key), f"{override!r} is not key=value")
    require(bool(text.strip()), f"{key}: the value is missing; {key}=null unsets what may be unset")
    for name, section in sections(cls).items():
        example = f"{name}.{dataclasses.fields(section)[0].name}"
        require(key != name, f"{key} is a section: set the keys below it, such as {example}=...")
    *names, last = key.split(".")
    for name in names:
        values = values.setdefault(name, {})
        require(isinstance(values, dict), f"{key}: {name} is a value, not a section")
    try:
        values[last] = _parse(text)
    except ConfigError as error:
        remedy = f"text with special characters wants quotes within quotes: {key}='\"...\"'"
        raise ConfigError(f"{key}: cannot read the value {text!r}; {remedy} ({error})") from None


def load_config(cls: type[T], path: str | Path | None, overrides: list[str] | None = None) -> T:
    """Reads settings: the defaults, changed by a YAML file if there is one, changed by `key=value` overrides.

    Raises:
        ConfigError: the file cannot be read, or `build` refuses the values.
    """
    values = _read_yaml(storage_path(str(path))) if path else {}
    for override in overrides or []:
        _override(cls, values, override)
    return build(cls, values)


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """Turns nested keys into dotted ones."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def changed_settings(path: str | Path, config: Any) -> list[str]:
    """Lists the settings that differ from those that `save_config` wrote to a file, as `key: then -> now`.

    The list is empty if there is no such file.
    """
    path = storage_path(str(path))
    before, now = _flat(_read_yaml(path)) if path.is_file() else {}, _flat(dataclasses.asdict(config))
    return [f"{key}: {value} -> {now.get(key)}" for key, value in before.items() if value != now.get(key)]


def save_config(config: Any, path: str | Path) -> None:
    """Writes every key of a config as YAML that `load_config` reads back."""
    put(storage_path(str(path)), yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).encode())


def field_comments(cls: type) -> dict[str, str]:
    """Returns the comments above or behind the fields of a dataclass, inherited ones too: they say what the fields mean."""
    lines = [line for base in reversed(cls.__mro__[:-1]) for line in inspect.getsource(base).splitlines()]
    comments, above = {}, []
    for line in lines:
        own_line = re.fullmatch(r"    # (.+)", line)
        field = re.match(r"    (\w+): ", line)
        if field:
            behind = line.partition("  # ")[2]
            comments[field[1]] = " ".join([*above, behind]).strip()
        above = [*above, own_line[1]] if own_line else []
    return comments
