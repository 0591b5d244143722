"""Transcribes audio files of any length.

  tiny-audio transcribe talk.mp3                            # text, as it is recognised
  tiny-audio transcribe talk.mp3 --format srt > talk.srt
  tiny-audio transcribe "calls/*.wav" --output calls.jsonl  # a line for each file
  tiny-audio transcribe talks/ --output "subtitles/*.vtt"   # a file for each
  cat talk.mp3 | tiny-audio transcribe - --format json

A FILE is a file, a folder that is searched for audio, a glob, a URL (https://, s3://, gs://, hf://), or - for standard input.
A file that cannot be used is told on standard error, and ends nothing else. For thousands of files there is a job on a
cluster, ray_jobs.transcribe, which also goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.decode import AudioError
from tiny_audio.data.audio_files import STDIN, find_audio
from tiny_audio.data.rows import UNREADABLE
from tiny_audio.inference.lines import error_line, file_line, segment_line, word_line
from tiny_audio.inference.long_form import Segment
from tiny_audio.inference.output import FORMS, Output
from tiny_audio.storage import require_model

VAD = VadConfig()
FORMATS = {"text": ".txt", "json": ".jsonl", "srt": ".srt", "vtt": ".vtt", "csv": ".csv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="what to transcribe; see above")
    parser.add_argument("--format", choices=FORMATS, default="text", help="the form on standard output (default text)")
    parser.add_argument("--output", help="a file instead, whose suffix says the form: " + " ".join(FORMS))
    parser.add_argument("--window-s", type=float, help="cuts files longer than this (default: what the model takes)")


def run(arguments: argparse.Namespace) -> int:
    """Transcribes the files; returns 1 if one of them could not be used."""
    paths = find_audio(arguments.files)
    output = Output.of(arguments.output, paths) if arguments.output else None
    model = require_model(arguments.model)  # at once: the next line takes seconds
    from tiny_audio.inference.local import load_transcriber

    transcriber, lines = load_transcriber(model, arguments.device), {}
    is_text = arguments.format == "text" and not output
    for path in paths:
        if is_text and len(paths) > 1:
            print(f"==> {path} <==")
        lines[path] = _transcribed(transcriber, path, arguments, is_text)
        if not output and not is_text:
            print(FORMS[FORMATS[arguments.format]]([lines[path]]), end="", flush=True)
    if output:
        output.write(lines)
    return int(any("error" in line for line in lines.values()))


def _transcribed(transcriber, path: str, arguments: argparse.Namespace, shown: bool) -> dict:
    """Returns the line of a file; shows its text as it comes, and why there is none."""
    from tiny_audio.inference.local import begin_transcription, opened

    try:
        with (
            opened(sys.stdin.buffer if path == STDIN else path) as file,
            begin_transcription(transcriber, file, arguments.vad, arguments.window_s) as (cut, segments),
        ):
            done = [_as_line(segment) for segment in _with_progress(segments, path, cut.duration_s, shown)]
            return file_line(path, cut.duration_s, done, cut.is_long)
    except AudioError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return error_line(path, error.reason)
    except OSError as error:
        print(f"{path}: cannot be read ({type(error).__name__})", file=sys.stderr)
        return error_line(path, UNREADABLE)


def _as_line(segment: Segment) -> dict:
    transcript, words = segment.transcript, segment.transcript.words
    words = words and [word_line(word) for word in words]
    of_text = (transcript.text, transcript.complete, transcript.looped, transcript.doubtful, words)
    return segment_line(segment.start_s, segment.end_s, *of_text)


def _with_progress(segments: Iterable[Segment], path: str, duration_s: float, shown: bool) -> Iterator[Segment]:
    """Shows a bar on a terminal, in seconds of audio, and each text if it is to be shown."""
    with tqdm(total=round(duration_s), desc=path, unit="s", disable=None, leave=False) as bar:
        for segment in segments:
            if shown and segment.transcript.text:
                tqdm.write(segment.transcript.text, file=sys.stdout)
                sys.stdout.flush()
            bar.update(round(segment.end_s) - bar.n)
            yield segment
