"""What Ray's own command says before it starts: `serve run tiny_audio.serving.app:build model=FOLDER`.

With an import path, `serve run` calls the builder in its own process, and then starts Ray. With a config file nothing of ours
runs there, and a service that cannot start leaves it waiting: `python -m tiny_audio.serving CONFIG` runs those.
"""

from __future__ import annotations

import os

import click
import yaml

from tiny_audio.config import ConfigError
from tiny_audio.config_files import load_config
from tiny_audio.serving.arguments import CONFIG, Arguments, EdgeSettings
from tiny_audio.serving.keys import Keys
from tiny_audio.storage import without_secrets


def is_serve_run() -> bool:
    """Whether this process is `serve run`, which is about to start the application."""
    command = click.get_current_context(silent=True)
    return command is not None and command.info_name == "run"


def arguments_of(texts: dict[str, str]) -> Arguments:
    """Reads the arguments of `serve run`, checks what `python -m tiny_audio.serving` does, and has Ray start with our edge.

    Raises:
        ClickException: something cannot work; `serve run` says so in one line, and ends with 2.
    """
    try:
        return _checked(texts)
    except ConfigError as error:
        refusal = click.ClickException(without_secrets(str(error)))
        refusal.exit_code = 2
        raise refusal from None


def _checked(texts: dict[str, str]) -> Arguments:
    from ray.serve.config import HTTPOptions

    from tiny_audio.serving.run import require_free_port, require_parts

    arguments = load_config(Arguments, None, [f"{key}={text}" for key, text in texts.items()])
    require_parts(arguments)
    Keys(EdgeSettings.from_environment().api_keys)
    if not (click.get_current_context().params["address"] or os.environ.get("RAY_ADDRESS")):
        http = HTTPOptions()  # `serve run` has no others
        require_free_port(http.host, http.port)
        edge = yaml.safe_load(CONFIG.read_text())["controller_options"]["runtime_env"]["env_vars"]
        os.environ |= edge  # the proxies of the Ray that it starts inherit them
    return arguments
