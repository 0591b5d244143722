"""The command `tiny-audio` and `tiny_audio.transcribe`: every form, standard input, live sound, and errors of one line."""

import json
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest
from ray.serve.schema import ServeDeploySchema

import tiny_audio
from tests.conftest import ROOT, encode_audio, tone
from tiny_audio.audio.decode import AudioError
from tiny_audio.cli import serve
from tiny_audio.cli.main import main
from tiny_audio.config import ConfigError
from tiny_audio.inference.local import load_transcriber
from tiny_audio.lab.local_nodes import wait_for
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize
from tiny_audio.serving.arguments import Arguments


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """Holds model/, a short clip, a long recording of three sentences, silence, and a file that is no audio."""
    folder = tmp_path_factory.mktemp("cli")
    model.save_pretrained(folder / "model")
    speech = [synthesize("the old baker carried seven lemons", voice, random.Random(0)) for voice in held_out_voices()[:3]]
    long = np.concatenate([x for sentence in speech for x in (np.zeros(40_000, np.int16), sentence)])
    for name, pcm in {"short": speech[0], "long": long, "silence": np.zeros(32_000, np.int16)}.items():
        (folder / f"{name}.wav").write_bytes(encode_audio(pcm, "wav"))
    (folder / "broken.mp3").write_bytes(b"no audio at all")
    yield folder
    load_transcriber.cache_clear()


def _pour(data: bytes, pipe: BinaryIO) -> None:
    with suppress(BrokenPipeError), pipe:
        pipe.write(data)


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """Runs the command in the folder; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TINY_AUDIO_MODEL", "model")

    def run(*words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        reading, writing = map(os.fdopen, os.pipe(), ("rb", "wb"))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=reading, isatty=lambda: False))
        capsys.readouterr()
        with reading, ThreadPoolExecutor(1) as pool:
            pool.submit(_pour, stdin, writing)
            code = main(list(words))
        return code, *capsys.readouterr()

    return run


def test_a_file_of_any_length_is_transcribed_in_every_form(command, folder):
    whole = tiny_audio.transcribe(folder / "long.wav", model="model", vad=None)
    starts_s = [segment.start_s for segment in whole.segments]
    assert np.allclose(starts_s, [2.5 * (n + 1) + n * (whole.duration_s - 7.5) / 3 for n in range(3)], atol=0.3)
    code, text, _ = command("transcribe", "long.wav")
    assert code == 0
    assert " ".join(text.split()) == " ".join(whole.text.split())
    line = json.loads(command("transcribe", "long.wav", "--format", "json")[1])
    assert [segment["start_s"] for segment in line["segments"]] == [round(start_s, 3) for start_s in starts_s]
    assert command("transcribe", "long.wav", "--format", "vtt")[1].count(" --> ") == 3
    assert command("transcribe", "long.wav", "--output", "made/*.srt") == (0, "", "")
    assert (folder / "made/long.srt").read_text() == command("transcribe", "long.wav", "--format", "srt")[1]


def test_several_files_and_standard_input(command, folder):
    short = tiny_audio.transcribe((folder / "short.wav").read_bytes(), model="model")
    assert len(short.segments) == 1
    code, text, errors = command("transcribe", "short.wav", "broken.mp3", "silence.wav")
    assert code == 1
    assert text.split("==> ")[1:] == [
        f"{folder}/short.wav <==\n{short.text}\n",
        f"{folder}/broken.mp3 <==\n",
        f"{folder}/silence.wav <==\n",
    ]
    assert errors.splitlines() == [errors.strip()]
    assert errors.startswith(f"{folder}/broken.mp3: not readable as audio")
    code, text, _ = command("transcribe", "-", "--format", "json", stdin=(folder / "short.wav").read_bytes())
    assert (code, json.loads(text)["text"]) == (0, short.text)
    _, text, _ = command("transcribe", "-", "--format", "json", stdin=(folder / "long.wav").read_bytes())
    _, of_file, _ = command("transcribe", "long.wav", "--format", "json")
    assert json.loads(text) == {**json.loads(of_file), "path": "-"}


def test_live_sound_is_a_line_after_each_pause(command, folder):
    sound = (folder / "long.wav").read_bytes()[44:] + bytes(40_000)
    code, text, errors = command("listen", "-", stdin=sound)
    assert (code, errors) == (0, "listening\n")
    segments = tiny_audio.transcribe(folder / "long.wav", model="model").segments
    assert len(text.splitlines()) == sum(bool(segment.transcript.text) for segment in segments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("transcribe", "nowhere.wav"), "nowhere.wav: no such file or folder"),
        (("transcribe", "short.wav", "--model", "./nowhere"), "./nowhere: no saved model there"),
        (("transcribe", "short.wav", "--model", ""), "name a model: --model FOLDER"),
        (("transcribe", "short.wav", "--threshold", "2"), "vad.threshold must be less than 1, not 2.0"),
        (("transcribe", "short.wav", "--window-s", "9"), "window_s=9 is over 8 s, which the encoder takes"),
        (("transcribe", "short.wav", "--window-s", "-1"), "window_s=-1 is under 1 s, the shortest window"),
        (("transcribe", "short.wav", "long.wav", "--output", "a.srt"), "make one for each"),
        (("serve", "--port", "0"), "--port must be 1 to 65535"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_2(words, message, command):
    code, _, errors = command(*words)
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_microphone_that_is_missing_is_told_with_the_remedy(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, errors = command("listen")
    assert code == 2
    assert "pip install 'tiny-audio[listen]'" in errors


def test_the_library_call_says_what_is_wrong(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        tiny_audio.transcribe("nowhere.wav", model="model")
    with pytest.raises(AudioError, match="not readable as audio"):
        tiny_audio.transcribe("broken.mp3", model="model")
    with pytest.raises(ConfigError, match="no saved model"):
        tiny_audio.transcribe("short.wav", model="./nowhere")
    assert tiny_audio.transcribe(encode_audio(tone(1.0), "wav"), model="model").segments == []


def test_a_model_is_let_go_when_another_is_loaded(folder):
    def engines() -> int:
        return sum(thread.name == "engine" for thread in threading.enumerate())

    load_transcriber.cache_clear()
    others = engines()
    load_transcriber(str(folder / "model"))
    copytree(folder / "model", folder / "other")
    load_transcriber(str(folder / "other"))
    wait_for(lambda: engines() == others + 1, "the end of the first model's engine", 10)


def test_serve_runs_the_service_as_its_own_config_does():
    assert serve.CONFIG.read_text() == (ROOT / "serve/config.yaml").read_text()
    config = serve.serve_config("m", "cuda", "0.0.0.0", 8001, 2)
    ServeDeploySchema.model_validate(config)
    assert (config["http_options"]["host"], config["http_options"]["port"]) == ("0.0.0.0", 8001)
    args = Arguments(**config["applications"][0]["args"])
    assert (args.model, args.device, args.num_threads) == ("m", "cuda", 2)
