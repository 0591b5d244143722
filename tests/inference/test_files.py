"""Batch transcription from the files' names to the output, around the model: any form, from where it stopped, each file once."""

import csv
import json
from pathlib import Path

import fsspec
import pytest

from tests.conftest import encode_audio, tone
from tiny_audio.config import ConfigError
from tiny_audio.data.audio_files import find_audio
from tiny_audio.inference import files
from tiny_audio.inference.config import TranscribeConfig
from tiny_audio.inference.files import decode_file, transcribe_files
from tiny_audio.inference.output import Output

WAV = encode_audio(tone(0.5), "wav")


@pytest.fixture
def recordings(tmp_path) -> Path:
    folder = tmp_path / "recordings"
    for name in ("a.wav", "b.M4A", "sub/c.webm", "._a.wav", "notes.txt", ".cache/d.wav", "x[1].wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(WAV)
    return folder


def names(inputs: list[str], folder: Path) -> list[str]:
    return [path.removeprefix("file://").removeprefix(f"{folder}/") for path in find_audio(inputs)]


def test_inputs_are_files_folders_globs_and_urls_each_file_once(recordings):
    everything = ["a.wav", "b.M4A", "sub/c.webm", "x[1].wav"]
    assert names([str(recordings)], recordings) == everything
    once = ["a.wav", "x[1].wav", "b.M4A", "sub/c.webm"]
    assert names([f"{recordings}/a.wav", f"{recordings}/*.wav", str(recordings)], recordings) == once
    assert names([f"{recordings}/x[1].wav"], recordings) == ["x[1].wav"]
    assert names([f"{recordings}/**/*.webm"], recordings) == ["sub/c.webm"]
    assert names([f"file://{recordings}"], recordings) == everything
    assert find_audio(["-", "https://example.org/a.mp3?key=[1]"]) == ["-", "https://example.org/a.mp3?key=[1]"]


def test_object_storage_is_listed_and_read():
    filesystem = fsspec.filesystem("memory")
    for name in ("calls/a.wav", "calls/b.mp3", "calls/_SUCCESS"):
        filesystem.pipe_file(f"/{name}", WAV)
    assert find_audio(["memory://calls/*"]) == ["memory:///calls/a.wav", "memory:///calls/b.mp3"]
    assert find_audio(["memory://calls"]) == ["memory:///calls/a.wav", "memory:///calls/b.mp3"]
    assert decode_file("memory:///calls/a.wav", None, 8.0).duration_s == 0.5
    assert decode_file("memory:///calls/gone.wav", None, 8.0).reason == "unreadable"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs is empty"),
        (["nowhere.wav"], "nowhere.wav: no such file or folder"),
        (["nowhere/*.wav"], r"nowhere/\*.wav: no such files"),
        (["nothing://bucket/a.wav"], "nothing://bucket/a.wav: cannot be listed: Protocol not known"),
    ],
)
def test_inputs_that_are_none_are_told_in_a_line(inputs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_audio(inputs)


LINES = [
    {"path": "/r/a.wav", "text": "the old, baker", "duration_s": 3723.5, "complete": True, "looped": False},
    {"path": "/r/b.wav", "error": "not_audio"},
    {"path": "/r/c.wav", "text": "", "duration_s": 1.0, "complete": True, "looped": False},
]


def written(tmp_path, name: str, lines: list[dict]) -> str:
    output = Output.of(str(tmp_path / name), [line["path"] for line in lines])
    output.write({line["path"]: line for line in reversed(lines)})
    return (tmp_path / name).read_text()


def test_the_suffix_of_the_output_says_its_form(tmp_path):
    assert [json.loads(line) for line in written(tmp_path, "a.jsonl", LINES).splitlines()] == LINES
    assert written(tmp_path, "a.txt", LINES) == "the old, baker\n[not_audio] /r/b.wav\n\n"
    rows = list(csv.DictReader(written(tmp_path, "a.csv", LINES).splitlines()))
    assert [(row["path"], row["text"], row["error"]) for row in rows] == [
        ("/r/a.wav", "the old, baker", ""),
        ("/r/b.wav", "", "not_audio"),
        ("/r/c.wav", "", ""),
    ]
    assert written(tmp_path, "a.srt", LINES[:1]) == "1\n00:00:00,000 --> 01:02:03,500\nthe old, baker\n"
    assert written(tmp_path, "a.vtt", LINES[:1]) == "WEBVTT\n\n00:00:00.000 --> 01:02:03.500\nthe old, baker\n"
    assert written(tmp_path, "b.srt", LINES[1:2]) == "1\n00:00:00,000 --> 00:00:00,001\n[not_audio] /r/b.wav\n"
    assert written(tmp_path, "c.vtt", LINES[2:]) == "WEBVTT\n\n"


def test_subtitles_are_a_file_for_each_input(tmp_path):
    paths = ["/r/a.wav", "https://host/b.mp3?key=1", "-"]
    output = Output.of(f"{tmp_path}/subtitles/*.srt", paths)
    output.write({path: {"path": path, "text": "word", "duration_s": 1.0, "complete": True} for path in paths})
    assert sorted(path.name for path in (tmp_path / "subtitles").iterdir()) == ["a.srt", "b.srt", "stdin.srt"]
    names = Output.of("/o/*.srt", ["/r/x/a.wav", "/r/y/../z/a.wav", "/r/b.wav"]).names
    assert list(names.values()) == ["x/a", "y/z/a", "b"]
    for name, message in {
        "x.srt": "has the subtitles of one file, and there are 3; make one for each, as output=subtitles/\\*.srt",
        "x.doc": "must end in .jsonl, .txt, .csv, .srt, .vtt",
        "*/x.srt": "a \\* may stand in the file's name",
    }.items():
        with pytest.raises(ConfigError, match=message):
            Output.of(name, paths)
    with pytest.raises(ConfigError, match=r"/r/a\.wav and /r/a\.mp3 would be the same file"):
        Output.of("*.vtt", ["/r/a.wav", "/r/a.mp3"])


@pytest.fixture
def transcribed(monkeypatch) -> list[str]:
    """Stands in for the model and its actors; collects the files that they are given. It is killed once, at the file "killed"."""
    given: list[str] = []

    def transcribe(paths, settings, max_duration_s):
        for path in paths:
            given.append(path)
            if path == "killed" and given.count(path) == 1:
                raise KeyboardInterrupt
            reason = {"broken": "not_audio", "away": "unreadable"}.get(path)
            yield {"path": path, "error": reason} if reason else {"path": path, "text": f"of {path}", "duration_s": 1.0}

    monkeypatch.setattr(files, "_transcribed", transcribe)
    monkeypatch.setattr(files, "require_model", lambda model: model)
    monkeypatch.setattr(files, "read_model_window_s", lambda model: 8.0)
    return given


def run(tmp_path, paths: list[str], model: str = "model") -> tuple[int, int]:
    return transcribe_files(TranscribeConfig(model=model, output=f"{tmp_path}/out.jsonl"), paths, lambda lines, total: lines)


def test_a_stopped_job_goes_on_and_each_file_is_in_its_output_once(tmp_path, transcribed):
    paths = ["a", "broken", "away", "killed", "b"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, paths)
    assert not (tmp_path / "out.jsonl").exists()
    journal = tmp_path / ".out.jsonl.begun"
    journal.write_text(journal.read_text() + '{"path": "b", "te')  # cut off
    assert run(tmp_path, paths) == (3, 2)
    assert transcribed == ["a", "broken", "away", "killed", "away", "killed", "b"]  # storage may be back
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == paths
    assert not journal.exists()


def test_what_another_model_began_counts_for_nothing(tmp_path, transcribed):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["a", "killed"])
    assert run(tmp_path, ["a", "killed"], model="other") == (2, 0)
    assert transcribed == ["a", "killed", "a", "killed"]


def test_a_file_that_is_no_audio_is_a_reject_with_its_reason(tmp_path):
    (tmp_path / "broken.mp3").write_bytes(b"no audio at all")
    assert decode_file(f"{tmp_path}/broken.mp3", None, 8.0).reason == "not_audio"
    assert decode_file(f"{tmp_path}", None, 8.0).reason == "unreadable"
    assert decode_file("-", WAV, 8.0).duration_s == 0.5
    assert decode_file("-", WAV, 0.25).reason == "too_long"
