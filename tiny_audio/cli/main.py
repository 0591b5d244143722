"""The command `tiny-audio`: transcribe files, serve HTTP, or listen to a microphone, on this machine.

The exit code is 0 when all is done, 1 when some input could not be used, and 2 when one line says what must be mended first.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from tiny_audio.audio.config import VadConfig
from tiny_audio.cli import listen, serve, transcribe
from tiny_audio.config import ConfigError, require
from tiny_audio.config_files import build, field_comments
from tiny_audio.storage import without_secrets

MODEL_VARIABLE = "TINY_AUDIO_MODEL"
NO_MODEL = (
    f"name a model: --model FOLDER, URL or OWNER/NAME, or set {MODEL_VARIABLE}. A clone has a small one for read "
    "English, tiny_audio/models/people; `make quickstart` trains a tiny one for made speech, runs/quickstart/model"
)
ABOUT = """\
Turns speech into text on this machine. Begin with one of:

  tiny-audio transcribe --model runs/quickstart/model talk.mp3             # text, as it is recognised
  tiny-audio transcribe --model runs/quickstart/model talk.mp3 --format srt > talk.srt
  tiny-audio serve --model runs/quickstart/model                           # OpenAI's API on 127.0.0.1:8000
  tiny-audio listen --model runs/quickstart/model                          # the microphone, sentence by sentence
"""
MODEL_HELP = f"""\
what --model takes:
  a folder     that a training exported (runs/NAME/model), or ASRModel.save_pretrained wrote
  a URL        of such a folder: s3://bucket/model, gs://bucket/model
  OWNER/NAME   of such a model on the Hugging Face hub
  It holds the projector, and names its two backbones. {MODEL_VARIABLE} is the default.
"""


def _add_vad(parser: argparse.ArgumentParser, defaults: VadConfig) -> None:
    group, comments = parser.add_argument_group("speech and silence"), field_comments(VadConfig)
    for field in dataclasses.fields(VadConfig):
        default = getattr(defaults, field.name)
        name, kind = "--" + field.name.replace("_", "-"), type(default)
        group.add_argument(name, type=kind, default=default, metavar="N", help=f"{comments[field.name]} (default {default})")


def _vad(arguments: argparse.Namespace) -> VadConfig:
    return build(VadConfig, {field.name: getattr(arguments, field.name) for field in dataclasses.fields(VadConfig)})


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="tiny-audio", description=ABOUT, epilog=MODEL_HELP, formatter_class=raw)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, verb in (("transcribe", transcribe), ("serve", serve), ("listen", listen)):
        about = verb.__doc__.splitlines()[0]
        command = verbs.add_parser(name, help=about, description=verb.__doc__, epilog=MODEL_HELP, formatter_class=raw)
        command.add_argument("--model", default=os.environ.get(MODEL_VARIABLE), help="the model; see below")
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (default cpu)")
        verb.add_arguments(command)
        if hasattr(verb, "VAD"):
            _add_vad(command, verb.VAD)
        command.set_defaults(run=verb.run, prog=command.prog)
    return parser


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    arguments = _parser().parse_args(words)
    try:
        require(bool(arguments.model), NO_MODEL)
        if "threshold" in arguments:
            arguments.vad = _vad(arguments)
        return arguments.run(arguments)
    except ConfigError as error:
        print(f"{arguments.prog}: {without_secrets(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
