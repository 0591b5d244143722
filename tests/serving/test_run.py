"""The command: what cannot work is one line before anything starts, and the end waits for what was taken on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
import yaml
from click.testing import CliRunner
from ray.serve import scripts

from tests.conftest import ROOT
from tests.serving.conftest import CONFIG, TONES
from tiny_audio.config import ConfigError
from tiny_audio.serving.run import read_config, require_free_port

COMMAND = [sys.executable, "-m", "tiny_audio.serving"]


def config_file(tmp_path, environment=(), http=(), **args) -> str:
    (application,) = CONFIG["applications"]
    variables = CONFIG["controller_options"]["runtime_env"]["env_vars"] | dict(environment)
    changes = {
        "http_options": CONFIG["http_options"] | dict(http),
        "controller_options": {"runtime_env": {"env_vars": variables}},
        "applications": [application | {"args": application["args"] | args}],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(CONFIG | changes))
    return str(tmp_path / "serve.yaml")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "runs/none"}, "runs/none: no saved model there"),
        ({"modell": "x"}, "unknown key modell; did you mean model"),
        ({"models": {"second": "runs/none"}}, "runs/none: no saved model there"),
        ({"models": {"tiny_audio": "runs/none"}}, "models: tiny_audio is the name of model already"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"device": "cuda"}, "asks for a GPU and this machine has none"),
        ({"environment": {"TINY_AUDIO_API_KEYS": "none"}}, "none: cannot be read"),
        ({"environment": {"TINY_AUDIO_MAX_HELD_MIB": "lots"}}, "max_held_mib must be a whole number"),
        ({"http": {"port": "http"}}, "http_options.port"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, saved_model, wrong, says):
    import torch

    if wrong == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=says) as caught:
        read_config(config_file(tmp_path, **{"model": saved_model} | wrong))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model=runs/none"], "runs/none: no saved model there"),
        (["model=MODEL", "modell=x"], "unknown key modell; did you mean model"),
        (["model=MODEL", "max_batch_size=none"], "max_batch_size must be a whole number"),
        (["model=MODEL", "device=cuda"], "asks for a GPU and this machine has none"),
        (["model=MODEL", "max_batch_size=8"], "http_options.port=8000"),
    ],
)
def test_rays_own_command_says_what_is_wrong_in_one_line(saved_model, monkeypatch, arguments, says):
    """Before it starts a Ray, as with the import path of an application it can."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # if somebody has the port already, that is as good
            other.bind(("127.0.0.1", 8000))
            other.listen()
        command = ["run", "tiny_audio.serving.app:build", *(one.replace("MODEL", saved_model) for one in arguments)]
        result = CliRunner().invoke(scripts.cli, command)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert says in line
    assert result.exit_code == 2


def test_a_port_that_another_server_has_is_refused():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="stop what has it"):
            require_free_port("127.0.0.1", other.getsockname()[1])


def test_the_command_ends_with_2(tmp_path):
    run = subprocess.run([*COMMAND, config_file(tmp_path, model="runs/none")], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("python -m tiny_audio.serving: runs/none: no saved model there")


@contextmanager
def running(config: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Runs the command on a Ray of its own; yields its URL and its process once it answers."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen([*COMMAND, config], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = next(line for line in server.stdout if line.startswith("answers at "))
            threading.Thread(target=server.stdout.read, daemon=True).start()  # a full pipe would stop it
            yield line.split()[-1], server
        finally:
            server.send_signal(signal.SIGTERM)


def ask(url: str, data: bytes, timeout_s: float = 120) -> requests.Response:
    """Asks for a transcript on a connection of its own."""
    form = {"files": {"file": ("clip", data)}, "data": {"model": "tiny_audio"}}
    return requests.post(f"{url}/v1/audio/transcriptions", **form, timeout=timeout_s)


@pytest.mark.slow
def test_rays_own_command_serves_behind_our_edge_once_on_a_port(saved_model):
    require_free_port("127.0.0.1", 8000)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    serve = shutil.which("serve", path=Path(sys.executable).parent)
    command = [serve, "run", "tiny_audio.serving.app:build", f"model={saved_model}"]
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options | {"stderr": subprocess.DEVNULL}) as server:
        try:
            while not is_ready("http://127.0.0.1:8000"):
                time.sleep(0.5)
            second = subprocess.run(command, **options, timeout=60)
            assert (second.returncode, second.stderr.count("Error: http_options.port=8000")) == (2, 1)
            answer = ask("http://127.0.0.1:8000", TONES[0], timeout_s=60)
            assert (answer.status_code, "x-request-id" in answer.headers) == (200, True)
        finally:
            server.send_signal(signal.SIGINT)


def is_ready(url: str) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(f"{url}/readyz", timeout=10).ok
    return False
