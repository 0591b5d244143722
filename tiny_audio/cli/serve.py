"""Serves OpenAI's transcription API over HTTP, on Ray Serve, until it is stopped (Ctrl+C).

  tiny-audio serve --model runs/quickstart/model
  curl -F file=@talk.mp3 -F model=tiny_audio http://127.0.0.1:8000/v1/audio/transcriptions

It starts a Ray on this machine, or runs on the one that RAY_ADDRESS names. Everybody who reaches the port may call, so set
TINY_AUDIO_API_KEYS to a file of keys before --host opens it to others. `python -m tiny_audio.serving CONFIG` does the same with a
config of yours, which has all settings: https://docs.ray.io/en/latest/serve/production-guide/config.html
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml

from tiny_audio.config import require
from tiny_audio.serving.arguments import CONFIG
from tiny_audio.storage import require_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("--port", type=int, default=8000, help="the port (default 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1: this machine alone)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model (default 1)")


def serve_config(model: str, device: str, host: str, port: int, num_threads: int) -> dict:
    """Returns the config that `serve run` is given: the service's own, with these settings."""
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"] |= {"host": host, "port": port}
    config["applications"][0]["args"] = {"model": model, "device": device, "num_threads": num_threads}
    return config


def run(arguments: argparse.Namespace) -> int:
    """Runs the service with these arguments until it is stopped, and returns 0."""
    from tiny_audio.serving import run as service  # it imports Ray

    require(0 < arguments.port < 65_536, f"--port must be 1 to 65535, not {arguments.port}")
    config = serve_config(require_model(arguments.model), arguments.device, arguments.host, arguments.port, arguments.threads)
    with tempfile.TemporaryDirectory(prefix="tiny-audio-") as folder:
        path = Path(folder) / "serve.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        service.run(str(path))
    return 0
