"""The `serve` command on a Ray of this machine: runs the HTTP service as a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import yaml

from tiny_audio.lab.ray_cli import BIN, WITH_TOKEN, Cluster, free_port

SERVE_START_TIMEOUT_S = 180


@contextmanager
def serve_app(cluster: Cluster, folder: Path, args: dict[str, object], variables: dict[str, str] | None = None) -> Iterator[str]:
    """Runs `serve run` of serve/config.yaml with these `args` beside its own, for as long as the context lasts; yields its URL.

    Args:
        cluster: where it runs.
        folder: takes the config, serve.yaml, and the log, serve.log.
        args: the application's arguments.
        variables: environment variables beside the config's own.

    Raises:
        RuntimeError: the server stopped, or was not ready within SERVE_START_TIMEOUT_S.
    """
    config = yaml.safe_load(Path("serve/config.yaml").read_text())
    config["http_options"]["port"] = port = free_port(config["http_options"]["port"])
    config["applications"][0]["args"] |= args
    config["controller_options"]["runtime_env"]["env_vars"] |= variables or {}
    path, log = folder / "serve.yaml", folder / "serve.log"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {**os.environ, **WITH_TOKEN, "RAY_ADDRESS": cluster.gcs_address}
    print(f"$ serve run {path}", flush=True)
    with log.open("w") as output:
        server = subprocess.Popen([str(BIN / "serve"), "run", str(path)], env=environment, stdout=output, stderr=output)
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/healthz", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_healthy(url: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + SERVE_START_TIMEOUT_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"the server stopped as it started; {log} says why")
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass  # it does not listen yet
        time.sleep(0.5)
    raise RuntimeError(f"the server was not ready after {SERVE_START_TIMEOUT_S} s; {log} says why")
