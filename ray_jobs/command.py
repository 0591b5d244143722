"""The command line that every job shares: `python -m ray_jobs.VERB CONFIG key=value ...`.

Exit codes: 0 done; 1 the job failed; 2 one line says what must be mended first: the command, the config, data or storage,
found before Ray starts or later in a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tiny_audio.config import ConfigError, require
from tiny_audio.config_files import load_config
from tiny_audio.ray_names import CORE_LOG_LEVEL

T = TypeVar("T")
SPARE_CPUS = 2


def _keys(cls: type, prefix: str = "") -> list[str]:
    """One line a key: its dotted name and default."""
    lines = []
    for item in dataclasses.fields(cls):
        default = item.default_factory() if item.default is dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            lines += _keys(type(default), f"{prefix}{item.name}.")
        else:
            lines.append(f"  {prefix}{item.name}={default if isinstance(default, str) else json.dumps(default)}")
    return lines


def run_command(description: str, config_class: type[T], job: Callable[[T], None]) -> None:
    """Parses the command line into a config and runs `job` with it. Does not return: exits with the job's code."""
    verb = job.__module__ if job.__module__ != "__main__" else sys.modules["__main__"].__spec__.name
    source = Path(inspect.getfile(config_class)).relative_to(Path(__file__).resolve().parent.parent)
    parser = argparse.ArgumentParser(
        prog=f"python -m {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"keys and their defaults (comments in {source} say what they mean):\n" + "\n".join(_keys(config_class)),
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="YAML of differences from the defaults, such as ray_jobs/configs/quickstart.yaml"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override a key, such as num_workers=2 or data.batch_rows=64"
    )
    arguments = parser.parse_args()
    try:
        job(load_config(config_class, arguments.config, arguments.overrides))
    except ConfigError as error:
        sys.exit(_say(parser.prog, error))


def start_ray(num_workers: int = 1, num_gpus: int = 0) -> None:
    """Joins the cluster that RAY_ADDRESS names, as it does for a submitted job, or starts one on this machine.

    There, CPUs are counted generously: training workers hold theirs while they wait for the decode tasks to come.

    Raises:
        ConfigError: this machine lacks the GPUs asked for. (A cluster may still grow: there Ray waits.)
    """
    os.environ.setdefault(CORE_LOG_LEVEL, "fatal")  # what its core has to say reaches us as exceptions
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

    here = torch.cuda.device_count()
    remedy = "set use_gpu=false, or submit the job to a cluster"
    require(here >= num_gpus, f"use_gpu=true asks for {num_gpus} GPUs and this machine has {here}; {remedy}")


def _say(program: str, error: Exception) -> int:
    print(f"{program}: {error}", file=sys.stderr)
    return 2
