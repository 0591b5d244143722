"""The command line that all jobs share: `python -m ray_jobs.VERB CONFIG key=value ...`.

A job imports what takes long only when its settings are good, so that `--help` and a mistyped key answer at once. The exit
code is 0 when the job is done, 1 when it failed, and 2 when one line says what must be mended first: the command, its
settings, the data or the storage.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from tiny_audio.config import ConfigError, require
from tiny_audio.config_files import field_comments, load_config, sections
from tiny_audio.ray_names import CORE_LOG_LEVEL
from tiny_audio.storage import without_secrets

T = TypeVar("T")
SPARE_CPUS = 2
KEY_WIDTH = 30  # columns of `--help` before the meaning of a key


def _key_help(key: str, default: Any, meaning: str, width: int) -> str:
    """A key with its default, and its meaning in a column beside it."""
    setting = f"  {key}={default if isinstance(default, str) else json.dumps(default)}"
    text = textwrap.wrap(meaning, width - KEY_WIDTH, break_long_words=False, break_on_hyphens=False)
    indent = "\n" + " " * KEY_WIDTH
    if len(setting) < KEY_WIDTH - 1 and text:
        return indent.join([setting.ljust(KEY_WIDTH) + text[0], *text[1:]])
    return indent.join([setting, *text])


def settings_help(cls: type, width: int, prefix: str = "") -> str:
    """Every key with its default and meaning, in lines of `width` columns; a paragraph for each section."""
    nested, comments, defaults = sections(cls), field_comments(cls), cls()
    keys = [field.name for field in dataclasses.fields(cls) if field.name not in nested]
    lines = [_key_help(prefix + key, getattr(defaults, key), comments.get(key, ""), width) for key in keys]
    for name, section in nested.items():
        about = " ".join(inspect.getdoc(section).split())
        lines += ["", textwrap.fill(f"{name}: {about}", width, subsequent_indent="  ")]
        lines.append(settings_help(section, width, f"{name}."))
    return "\n".join(lines)


def run_command(description: str, config_class: type[T], job: Callable[[T], None]) -> None:
    """Reads the command line into settings and runs `job` with them; exits with 2 after one line if a ConfigError is raised."""
    verb = job.__module__ if job.__module__ != "__main__" else sys.modules["__main__"].__spec__.name
    width = min(shutil.get_terminal_size().columns, 120)
    parser = argparse.ArgumentParser(
        prog=f"python -m {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"keys, with their defaults:\n{settings_help(config_class, width)}" if {"-h", "--help"} & set(sys.argv) else None,
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file of differences from the defaults, such as those in ray_jobs/configs"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key; if it is there twice, the last one counts")
    arguments = parser.parse_args()
    try:
        job(load_config(config_class, arguments.config, arguments.overrides))
    except ConfigError as error:
        print(f"{parser.prog}: {without_secrets(str(error))}", file=sys.stderr)
        sys.exit(2)


def start_ray(num_workers: int = 1, num_gpus: int = 0) -> None:
    """Joins the cluster that RAY_ADDRESS names, as in a submitted job, or starts one on this machine.

    The latter counts more CPUs than there are: training workers hold theirs while they wait for decode tasks, which need some.

    Raises:
        ConfigError: this machine lacks the GPUs asked for. (A cluster may still grow: there Ray waits.)
    """
    os.environ.setdefault(CORE_LOG_LEVEL, "fatal")  # the errors of Ray's core reach us as exceptions
    import ray

    from tiny_audio.data.stream import quiet_ray_data

    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="WARNING")
    else:
        _require_gpus(num_gpus)
        num_cpus = max(os.cpu_count() or 1, num_workers) + SPARE_CPUS
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    quiet_ray_data()


def _require_gpus(num_gpus: int) -> None:
    import torch

    num_here = torch.cuda.device_count()
    remedy = "set use_gpu=false, or submit the job to a cluster"
    require(num_here >= num_gpus, f"use_gpu=true asks for {num_gpus} GPUs and this machine has {num_here}; {remedy}")
