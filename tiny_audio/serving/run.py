"""Runs the service until it is told to end: Ray's `serve run`, with what that lacks.

What cannot work is said in one line before anything starts, and SIGTERM or Ctrl-C waits for the requests that were taken on.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pydantic
import requests
import yaml
from ray.serve.schema import ServeDeploySchema

from tiny_audio import config_files
from tiny_audio.config import ConfigError, one_line, require
from tiny_audio.ray_names import PROXY_CALLBACK
from tiny_audio.serving.arguments import MIDDLEWARES, PREFIX, Arguments, EdgeSettings
from tiny_audio.serving.keys import Keys
from tiny_audio.serving.paths import DRAIN_PATH
from tiny_audio.storage import require_model, said_in_one_line

APP = "tiny_audio.serving.app:build"
POLL_S = 0.5
DRAIN_POLL_S = 0.05
ERROR_LINE = re.compile(r"[\w.()]*(Error|Exception)[\w.()]*: ")  # the end of a traceback
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def run(path: str) -> None:
    """Runs the Serve config at `path` on the cluster that RAY_ADDRESS names, or else on a Ray of this machine's own.

    Raises:
        ConfigError: the file, a setting, the model, the keys, the port or a GPU is not as it must be; or the model does not load.
    """
    config = read_config(path)
    service = Service(config)
    require_free_port(config.http_options.host, config.http_options.port)
    import ray
    from ray import serve
    from ray.serve import scripts

    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        # So none of Ray's ports is open to the network but those of Serve's replicas, which want Ray's token.
        ray.init(address="local", _node_ip_address="127.0.0.1")
    signal.signal(signal.SIGINT, service.end)
    signal.signal(signal.SIGTERM, service.end)
    threading.Thread(target=service.watch, daemon=True).start()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
        file.flush()
        try:
            scripts.cli.main(["run", file.name], standalone_mode=False)
        except (KeyboardInterrupt, SystemExit):
            serve.shutdown()
    require(not service.failure, service.failure)


def read_config(path: str) -> ServeDeploySchema:
    """Reads a Serve config and checks what can be checked before Ray starts; adds our edge, and a token to end it with.

    Raises:
        ConfigError: the file is no Serve config, or something that it names is not there.
    """
    with said_in_one_line(Path(path)):
        values = yaml.safe_load(Path(path).read_text())
    try:
        config = ServeDeploySchema.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for application in config.applications:
        if application.import_path == APP:
            require_parts(config_files.build(Arguments, application.args))
    own = {PROXY_CALLBACK: MIDDLEWARES, f"{PREFIX}DRAIN_TOKEN": secrets.token_urlsafe()}
    given = values.get("controller_options", {}).get("runtime_env", {}).get("env_vars", {})
    environment = {name: text for name, text in os.environ.items() if name.startswith(PREFIX)} | given | own
    Keys(EdgeSettings.from_environment(environment).api_keys)
    return ServeDeploySchema.model_validate({**values, "controller_options": {"runtime_env": {"env_vars": environment}}})


def require_parts(args: Arguments) -> None:
    """Raises a ConfigError unless the models are there, and the GPU, if one is wanted of this machine."""
    for model in (args.model, *args.models.values()):
        require_model(model)
    if args.device == "cuda" and not os.environ.get("RAY_ADDRESS"):
        import torch

        require(torch.cuda.is_available(), "device=cuda asks for a GPU and this machine has none; set device: cpu")


def require_free_port(host: str, port: int) -> None:
    """Raises a ConfigError if a server has the port already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"http_options.port={port}: {one_line(error)}; stop what has it, or take another") from None


class Service:
    """Follows the service that this process runs, and ends it."""

    def __init__(self, config: ServeDeploySchema):
        http = config.http_options
        host = "127.0.0.1" if http.host in ("0.0.0.0", "::") else http.host
        self.url = f"{'https' if http.ssl_certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{http.port}"
        self.settings = EdgeSettings.from_environment(config.controller_options.runtime_env["env_vars"])
        self.patience_s = http.request_timeout_s or 60
        self.failure = ""

    def end(self, number: int, frame) -> None:
        """Handles a signal: waits until all requests are answered, then raises KeyboardInterrupt; a second one does not wait."""
        for known in (signal.SIGINT, signal.SIGTERM):
            signal.signal(known, signal.default_int_handler)
        if not self.failure:
            print("no new requests; ends when those that it has are answered", flush=True)
            try:
                self._drain()
            except (requests.RequestException, TimeoutError) as error:
                print(f"not all were answered: {one_line(error)}", flush=True)
        raise KeyboardInterrupt

    def _drain(self) -> None:
        """Asks on new connections, which Linux deals out to the proxies, until each has said that it has no requests left."""
        until, in_progress = time.monotonic() + self.patience_s, {}  # by proxy
        while len(in_progress) < self.settings.num_proxies or any(in_progress.values()):
            if time.monotonic() > until:
                raise TimeoutError(f"{sum(in_progress.values())} are left after {self.patience_s:.0f} s")
            with warnings.catch_warnings(action="ignore"):
                # The certificate of TLS is for the service's name, and this is the machine itself.
                headers = {"Authorization": f"Bearer {self.settings.drain_token}"}
                said = requests.post(f"{self.url}{DRAIN_PATH}", headers=headers, timeout=self.patience_s, verify=False).json()
            in_progress[said["proxy"]] = said["in_progress"]
            time.sleep(DRAIN_POLL_S)

    def watch(self) -> None:
        """Says when the service answers, and ends it where it cannot start."""
        from ray import serve

        while True:
            time.sleep(POLL_S)
            applications = serve.status().applications.values()
            if any(application.status in FAILED for application in applications):
                self.failure = _why(next(one for one in applications if one.status in FAILED))
                os.kill(os.getpid(), signal.SIGINT)
                return
            if applications and all(application.status == "RUNNING" for application in applications):
                print(f"answers at {self.url}", flush=True)
                return


def _why(application) -> str:
    """Returns what Serve says of a failure in one line: of a traceback, the error."""
    messages = [deployment.message for deployment in application.deployments.values() if deployment.status in FAILED]
    lines = [line for message in [application.message, *messages] for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return one_line((errors or lines or ["the service did not start; Serve's log says why"])[-1])
