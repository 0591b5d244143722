"""Runs the service: `python -m tiny_audio.serving CONFIG`."""

import argparse
import sys

from tiny_audio.config import ConfigError
from tiny_audio.serving.run import run
from tiny_audio.storage import without_secrets

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tiny_audio.serving", description=run.__doc__.partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG", help="a Serve config, such as serve/config.yaml")
    try:
        run(parser.parse_args().config)
    except ConfigError as error:
        print(f"{parser.prog}: {without_secrets(str(error))}", file=sys.stderr)
        sys.exit(2)
