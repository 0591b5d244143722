"""Batch transcription from the files' names to the output, around the model: any form, from where it stopped, each file once."""

import csv
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.conftest import encode_audio, tone
from tiny_audio.audio.config import VadConfig
from tiny_audio.config import ConfigError
from tiny_audio.data.audio_files import find_audio
from tiny_audio.inference import files, pool
from tiny_audio.inference.config import TranscribeConfig
from tiny_audio.inference.file_windows import Cutting
from tiny_audio.inference.files import file_parts, transcribe_files
from tiny_audio.inference.output import Output
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize

WAV = encode_audio(tone(0.5), "wav")
CUTTING = Cutting(window_s=8.0, max_duration_s=60.0, skip_silence=False, vad=VadConfig())


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


def test_object_storage_is_listed_and_read(caplog):
    filesystem = fsspec.filesystem("memory")
    for name in ("calls/a.wav", "calls/b.mp3", "calls/_SUCCESS"):
        filesystem.pipe_file(f"/{name}", WAV)
    assert find_audio(["memory://calls/*"]) == ["memory:///calls/a.wav", "memory:///calls/b.mp3"]
    assert find_audio(["memory://calls"]) == ["memory:///calls/a.wav", "memory:///calls/b.mp3"]
    (part,) = file_parts("memory:///calls/a.wav", None, CUTTING)
    assert (part.duration_s, part.clip.duration_s, part.is_long) == (0.5, 0.5, False)
    assert reasons("memory://KEY:SECRET@calls/gone.wav", None, CUTTING) == ["unreadable"]
    assert "memory://calls/gone.wav: the audio cannot be read" in caplog.text
    assert "SECRET" not in caplog.text


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


SEGMENTS = [{"start_s": 1.0, "end_s": 2.5, "text": "the old"}, {"start_s": 3600.0, "end_s": 3601.0, "text": "baker & <b>"}]
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
    long = [{**LINES[0], "segments": SEGMENTS}]
    assert written(tmp_path, "d.srt", long).split("\n\n")[1] == "2\n01:00:00,000 --> 01:00:01,000\nbaker & <b>\n"
    assert written(tmp_path, "d.vtt", long).split("\n\n")[1:] == [
        "00:00:01.000 --> 00:00:02.500\nthe old",
        "01:00:00.000 --> 01:00:01.000\nbaker &amp; &lt;b&gt;\n",
    ]
    assert len(written(tmp_path, "d.csv", long).splitlines()) == 2


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

    def transcribe(paths, settings, cutting):
        for path in paths:
            given.append(path)
            if path == "killed" and given.count(path) == 1:
                raise KeyboardInterrupt
            reason = {"broken": "not_audio", "away": "unreadable"}.get(path)
            yield {"path": path, "error": reason} if reason else {"path": path, "text": f"of {path}", "duration_s": 1.0}

    monkeypatch.setattr(files, "_transcribed", transcribe)
    monkeypatch.setattr(pool, "require_model", lambda model: model)
    monkeypatch.setattr(files, "read_model_window_s", lambda model: 8.0)
    return given


def run(tmp_path, paths: list[str], model: str = "model") -> tuple[int, int, int]:
    return transcribe_files(TranscribeConfig(model=model, output=f"{tmp_path}/out.jsonl"), paths, lambda lines, total: lines)


def test_a_stopped_job_goes_on_and_each_file_is_in_its_output_once(tmp_path, transcribed):
    paths = ["a", "broken", "away", "killed", "b"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, paths)
    assert not (tmp_path / "out.jsonl").exists()
    journal = tmp_path / ".out.jsonl.begun"
    journal.write_text(journal.read_text() + '{"path": "b", "te')  # cut off
    assert run(tmp_path, paths) == (3, 2, 0)
    assert transcribed == ["a", "broken", "away", "killed", "away", "killed", "b"]  # storage may be back
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == paths
    assert not journal.exists()


def test_what_another_model_began_counts_for_nothing(tmp_path, transcribed):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["a", "killed"])
    assert run(tmp_path, ["a", "killed"], model="other") == (2, 0, 0)
    assert transcribed == ["a", "killed", "a", "killed"]


def reasons(path: str, data: bytes | None, cutting: Cutting) -> list[str]:
    return [part.clip.reason for part in file_parts(path, data, cutting)]


def test_a_file_that_is_no_audio_is_a_reject_with_its_reason(tmp_path):
    (tmp_path / "broken.mp3").write_bytes(b"no audio at all")
    assert reasons(f"{tmp_path}/broken.mp3", None, CUTTING) == ["not_audio"]
    assert reasons(f"{tmp_path}", None, CUTTING) == ["unreadable"]
    assert reasons("-", encode_audio(tone(9.0), "wav")[:-9000], CUTTING) == ["truncated"]
    assert reasons("-", encode_audio(tone(61.0), "wav"), CUTTING) == ["too_long"]


def test_standard_input_that_is_not_read_whole_is_a_reject(monkeypatch):
    monkeypatch.setattr(files, "STDIN_BYTES", len(WAV) - 1)
    assert reasons("-", WAV, CUTTING) == ["too_long"]


def test_a_short_file_is_one_part_as_it_is_and_silence_is_none(tmp_path):
    (part,) = file_parts("-", WAV, CUTTING)
    assert (part.num_parts, part.start_s, part.end_s, len(part.clip.pcm)) == (1, 0.0, 0.5, 8000)
    (part,) = file_parts("-", WAV, replace(CUTTING, skip_silence=True))
    assert (part.num_parts, part.duration_s, len(part.clip.pcm)) == (1, 0.5, 0)
    (part,) = file_parts("-", encode_audio(np.zeros(160_000, np.int16), "wav"), CUTTING)
    assert (part.num_parts, part.duration_s, part.is_long, len(part.clip.pcm)) == (1, 10.0, True, 0)


def spoken(*texts: str) -> np.ndarray:
    """Each text after a second of silence."""
    silence = np.zeros(16_000, np.int16)
    return np.concatenate([x for text in texts for x in (silence, synthesize(text, held_out_voices()[0], random.Random(0)))])


def test_a_long_file_is_parts_with_their_places_and_the_last_knows_how_many():
    pcm = spoken("the old baker carried seven lemons", "a quiet river", "this elephant snored past the port")
    cutting = replace(CUTTING, window_s=4.0, skip_silence=True, vad=VadConfig(join_pause_ms=0))
    parts = list(file_parts("-", encode_audio(pcm, "wav"), cutting))
    assert [part.num_parts for part in parts] == [0, 0, 3]
    assert {(part.is_long, part.duration_s) for part in parts} == {(True, len(pcm) / 16_000)}
    assert parts[0].start_s == pytest.approx(1.0, abs=0.1)
    assert all(a.end_s + 0.7 < b.start_s for a, b in pairwise(parts))


def test_parts_make_a_line_with_segments_in_whatever_order_they_come():
    common = {
        "id": "a.wav",
        "reason": "",
        "complete": True,
        "duration_s": 60.0,
        "is_long": True,
        "num_samples": 9,
        "num_parts": 0,
        "offset_s": 0.0,
        "doubtful": False,
        "words": None,
    }
    first = {**common, "hypothesis": "one", "start_s": 0.12345, "end_s": 9.0, "looped": False}
    last = {**common, "hypothesis": "two", "start_s": 30.0, "end_s": 39.0, "looped": True, "complete": False, "num_parts": 2}
    last |= {"offset_s": 29.8, "doubtful": True, "words": [{"text": "two", "start_s": 0.2, "end_s": 0.5}]}
    line = files._output_line([last, first])
    assert (line["text"], line["duration_s"], line["complete"], line["looped"]) == ("one two", 60.0, False, True)
    of_first = {"start_s": 0.123, "end_s": 9.0, "text": "one", "complete": True, "looped": False, "doubtful": False}
    assert line["segments"][0] == of_first
    assert line["doubtful"]
    assert line["segments"][1]["words"] == [{"word": "two", "start_s": 30.0, "end_s": 30.3}]
    short = files._output_line([{**last, "is_long": False}])
    assert "segments" not in short
    assert short["words"] == line["segments"][1]["words"]
    assert files._output_line([first, {**last, "reason": "damaged"}]) == {"path": "a.wav", "error": "damaged"}
    nothing = {**last, "num_samples": 0, "hypothesis": "", "looped": False, "complete": True, "num_parts": 1}
    assert files._output_line([nothing])["segments"] == []
