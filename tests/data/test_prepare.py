"""People's own files become shards, whatever their form: split by speaker, every reject told, every oddity counted."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import encode_audio, tone
from tiny_audio.config import ConfigError
from tiny_audio.data.footers import read_dataset
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.prepare import prepare as prepare_module
from tiny_audio.data.prepare.config import PrepareConfig
from tiny_audio.data.prepare.entries import Entry, read_inputs
from tiny_audio.data.prepare.measure import measure
from tiny_audio.data.prepare.prepare import prepare
from tiny_audio.data.prepare.report import FACTS, make_report, report_table
from tiny_audio.data.prepare.splits import assign_splits
from tiny_audio.data.shards import decode_slices

WORDS = ["the", "old", "baker", "carried", "seven", "lemons", "past", "a", "quiet", "river"]


def clip(number: int, kind: str = "wav") -> bytes:
    return encode_audio(tone(1.0 + 0.05 * number, 200 + 10 * number), kind)


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the tasks here, one after the other, in place of Ray Data."""
    monkeypatch.setattr(prepare_module, "map_each", lambda items, function: map(function, items))


def run(config: PrepareConfig, lines: list[str] | None = None) -> dict:
    return prepare(config, (lines if lines is not None else []).append, lambda parts, total: parts)


def shard_rows(folder: Path, split: str) -> list[dict]:
    return [row for path in sorted((folder / split).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def beside(folder: Path, count: int = 20) -> Path:
    for i in range(count):
        put(folder / f"talk/{i:02d}.{'flac' if i % 3 else 'wav'}", clip(i, "flac" if i % 3 else "wav"))
        put(folder / f"talk/{i:02d}.txt", f"\ufeff{WORDS[i % 10]}  quiet river\n")
    put(folder / "talk/._00.wav", b"a Mac's note")
    return folder


def metadata(folder: Path, name: str = "metadata.csv") -> Path:
    for split in ("train", "validation"):
        rows = [{"file_name": f"clips/{i}.wav", "transcription": f'{split}, "{WORDS[i]}"'} for i in range(3)]
        for i in range(3):
            put(folder / split / f"clips/{i}.wav", clip(i))
        text = io.StringIO()
        if name.endswith(".csv"):
            writer = csv.DictWriter(text, ["file_name", "transcription"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            text.writelines(json.dumps(row) + "\n" for row in rows)
        put(folder / split / name, text.getvalue())
    return folder


def test_a_folder_with_transcripts_beside_the_audio(tmp_path, in_this_process):
    lines = []
    folder = beside(tmp_path / "mine")
    config = PrepareConfig(inputs=[str(folder)], output_dir=str(tmp_path / "out"), rows_per_row_group=5, rows_per_file=8)
    report = run(config, lines)
    assert lines == ["20 rows; splits: by file (no column of speakers), so the same voice may be in train and test"]
    assert {name: split["rows"] for name, split in report["splits"].items()} == {"train": 18, "dev": 1, "test": 1}
    rows = [row for split in ("train", "dev", "test") for row in shard_rows(tmp_path / "out", split)]
    assert sorted(row["ID"] for row in rows) == [f"talk/{i:02d}" for i in range(20)]
    by_id = {row["ID"]: row for row in rows}
    assert by_id["talk/01"]["wav"]["bytes"] == clip(1, "flac")  # as it was
    assert by_id["talk/01"]["text"] == "old quiet river"
    assert by_id["talk/01"]["duration"] == pytest.approx(1.05)
    assert pq.ParquetFile(sorted((tmp_path / "out/train").glob("*"))[0]).metadata.row_group(0).num_rows <= 5
    groups = read_dataset(f"{tmp_path}/out/train/*.parquet")
    clips = decode_slices(plan_pass(groups), 8.0)
    assert {clip.source for clip in clips} == {"out"}
    assert len(clips) == 18


MANIFESTS = {
    "calls.csv": 'file,words,who\na.wav,"old, baker",anna\nsub/b.wav,river,ben\n',
    "semicolons.csv": "file;words;who\na.wav;old, baker;anna\nsub/b.wav;river;ben\n",
    "calls.tsv": "file\twords\twho\na.wav\told, baker\tanna\nsub/b.wav\triver\tben\n",
    "calls.jsonl": '{"file": "a.wav", "words": "old, baker", "who": "anna"}\n\n'
    '{"file": "sub/b.wav", "words": "river", "who": "ben"}\n',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_names_files_from_its_folder_on(name, tmp_path):
    path = put(tmp_path / name, "\ufeff" + MANIFESTS[name])
    with pytest.raises(ConfigError, match=rf"{path}: {tmp_path}/a.wav is not there; paths in a manifest begin at its folder"):
        read_inputs([str(path)], {"words": "text", "who": "spk_id"})
    put(tmp_path / "sub/b.wav", clip(0))  # one that is missing would be a reject
    entries = read_inputs([str(path)], {"words": "text", "who": "spk_id"})
    assert [(e.id, e.audio, e.text, e.speaker) for e in entries] == [
        ("a", f"{tmp_path}/a.wav", "old, baker", "anna"),
        ("sub/b", f"{tmp_path}/sub/b.wav", "river", "ben"),
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_audiofolder_keeps_its_splits(name, tmp_path, in_this_process):
    report = run(PrepareConfig(inputs=[str(metadata(tmp_path / "mine", name))], output_dir=str(tmp_path / "out")))
    assert {split: len(shard_rows(tmp_path / "out", split)) for split in report["splits"]} == {"train": 3, "dev": 3}
    assert shard_rows(tmp_path / "out", "dev")[0]["text"] == 'validation, "the"'


def test_a_hub_datasets_parquet_with_its_own_names_and_no_ids(tmp_path, in_this_process):
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, count in (("train", 12), ("test", 2)):
        columns = {
            "audio": pa.array([{"bytes": clip(i), "path": f"{i}.wav"} for i in range(count)], audio),
            "sentence": ["a quiet river"] * count,
            "client_id": [f"s{i % 4}" for i in range(count)],
        }
        path = put(tmp_path / f"cv/data/{split}-00000-of-00001.parquet", b"")
        pq.write_table(pa.table(columns), path, row_group_size=5)
    report = run(PrepareConfig(inputs=[str(tmp_path / "cv")], output_dir=str(tmp_path / "out"), rows_per_file=7))
    assert {name: split["rows"] for name, split in report["splits"].items()} == {"train": 12, "test": 2}
    assert report["splits"]["train"]["speakers"] == 4
    row = shard_rows(tmp_path / "out", "train")[6]
    assert row["ID"].endswith("data/train-00000-of-00001#6")
    assert row["wav"]["bytes"] == clip(6)


def test_rejects_are_counted_and_listed_and_cost_no_other_row(tmp_path, in_this_process):
    folder = beside(tmp_path / "mine", 6)
    put(folder / "talk/broken.wav", b"no audio")
    put(folder / "talk/broken.txt", "words")
    put(folder / "talk/mute.wav", clip(9))
    put(folder / "talk/latin.wav", clip(10))
    put(folder / "talk/latin.txt", b"caf\xe9")
    put(folder / "talk/long.wav", encode_audio(tone(3.0), "wav"))
    put(folder / "talk/long.txt", "words")
    report = run(PrepareConfig(inputs=[str(folder)], output_dir=str(tmp_path / "out"), max_duration_s=2.0))
    assert report["sources"]["out"]["rejected"] == {"no_label": 2, "not_audio": 1, "too_long": 1}
    rejects = {row["id"]: row for row in map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())}
    assert rejects["talk/broken"]["reason"] == "not_audio"
    assert rejects["talk/broken"]["path"] == f"{folder}/talk/broken.wav"
    assert sum(split["rows"] for split in report["splits"].values()) == 6


def test_a_second_start_goes_on_and_other_inputs_are_refused(tmp_path, in_this_process, monkeypatch):
    folder = beside(tmp_path / "mine")
    config = PrepareConfig(inputs=[str(folder)], output_dir=str(tmp_path / "out"), rows_per_file=5)
    taken, take_in = [], prepare_module.take_in

    def killed_at_the_third(task):
        taken.append(task["number"])
        if len(taken) == 3:
            raise KeyboardInterrupt
        return take_in(task)

    monkeypatch.setattr(prepare_module, "take_in", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    lines = []
    report = run(config, lines)
    assert taken == [0, 1, 2, 2, 3]
    assert lines[-1] == "2 of 4 parts are there already"
    ids = Counter(row["ID"] for split in report["splits"] for row in shard_rows(tmp_path / "out", split))
    assert ids == Counter(f"talk/{i:02d}" for i in range(20))
    put(folder / "talk/new.wav", clip(3))
    with pytest.raises(ConfigError, match="was begun with other inputs or settings; delete the folder"):
        run(config)


def test_shards_that_are_there_are_not_mixed_with(tmp_path, in_this_process):
    put(tmp_path / "out/train/a.parquet", b"")
    with pytest.raises(ConfigError, match="holds Parquet files already"):
        run(PrepareConfig(inputs=[str(beside(tmp_path / "mine"))], output_dir=str(tmp_path / "out")))


def test_a_check_writes_a_report_and_no_shards(tmp_path, in_this_process):
    config = PrepareConfig(inputs=[str(beside(tmp_path / "mine"))], output_dir=str(tmp_path / "out"), check=True)
    report = run(config)
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert not list((tmp_path / "out").glob("*/*-of-*.parquet"))


def test_flac_is_made_where_it_is_asked_for(tmp_path, in_this_process):
    run(PrepareConfig(inputs=[str(beside(tmp_path / "mine", 4))], output_dir=str(tmp_path / "out"), encoding="flac"))
    assert {row["wav"]["bytes"][:4] for row in shard_rows(tmp_path / "out", "train")} == {b"fLaC"}


def entries_of(speakers: dict[str, int]) -> list[Entry]:
    return [Entry(f"{name}-{i}", "a.wav", speaker=name) for name, count in speakers.items() for i in range(count)]


def test_no_speaker_is_in_two_splits_and_each_split_has_its_share():
    speakers = {f"s{i}": 5 + i % 7 for i in range(40)} | {"everywhere": 200}
    entries, note = assign_splits(entries_of(speakers), 0.1, 0.05, seed=3)
    assert note == "splits: by speaker (41)"
    splits = {split: {e.speaker for e in entries if e.split == split} for split in ("train", "dev", "test")}
    assert sum(map(len, splits.values())) == 41
    assert "everywhere" in splits["train"]
    counts = Counter(e.split for e in entries)
    assert 0.06 < counts["dev"] / counts.total() <= 0.1
    assert 0.02 < counts["test"] / counts.total() <= 0.05
    assert assign_splits(entries_of(speakers), 0.1, 0.05, seed=3)[0] == entries
    assert assign_splits(entries_of(speakers), 0.1, 0.05, seed=4)[0] != entries


def test_too_few_speakers_are_split_by_file_and_that_is_said():
    entries, note = assign_splits(entries_of({"anna": 30, "ben": 10}), 0.05, 0.05, seed=0)
    assert note == "splits: by file (only 2 speakers), so the same voice may be in train and test"
    assert Counter(e.split for e in entries) == {"train": 36, "dev": 2, "test": 2}
    assert {e.split for e in assign_splits(entries_of({"anna": 2}), 0.05, 0.05, 0)[0]} == {"train"}
    assert {e.split for e in assign_splits(entries_of({"anna": 9}), 0.0, 0.0, 0)[0]} == {"train"}


def test_a_clips_measures():
    loud = measure(np.clip(6 * tone(2.0).astype(np.int32), -32_768, 32_767).astype(np.int16))
    assert loud.clipped
    soft = measure(np.concatenate([np.zeros(16_000), tone(1.0), np.zeros(8_000)]).astype(np.int16))
    assert not soft.clipped
    assert (soft.lead_s, soft.trail_s) == (pytest.approx(1.0, abs=0.03), pytest.approx(0.5, abs=0.03))
    assert measure(tone(1.0)).level_dbfs == pytest.approx(20 * np.log10(8000 / 32_768 / np.sqrt(2)), abs=0.1)
    assert measure(tone(1.0)).digest == measure(tone(1.0)).digest != loud.digest
    silent = measure(np.zeros(16_000, np.int16))
    assert (silent.level_dbfs, silent.lead_s, silent.clipped) == (-100.0, 1.0, False)


def fact(name: str, **changes) -> dict:
    good = {"id": name, "source": "a", "split": "train", "speaker": "anna", "path": "x.wav", "reason": "", "digest": name}
    good |= {"duration_s": 2.0, "level_dbfs": -20.0, "lead_s": 0.1, "trail_s": 0.1, "num_chars": 30, "clipped": False}
    return good | changes


def test_a_report_counts_what_is_suspect_by_source():
    facts = [
        fact("1"),
        fact("2", clipped=True, level_dbfs=-50.0),
        fact("3", trail_s=1.5, num_chars=60),
        fact("4", num_chars=2),
        fact("1", split="test", digest="1", speaker="ben"),
        fact("5", source="", split="dev", speaker=""),
        fact("6", reason="no_label", duration_s=0.0, digest=""),
    ]
    report = make_report(pa.Table.from_pylist(facts, schema=FACTS), dataset="mine")
    source = report["sources"]["a"]
    counts = {"rows": 6, "clipped": 1, "quiet": 1, "long_silence": 1, "fast_labels": 1, "slow_labels": 1, "empty_labels": 1}
    assert {name: source[name] for name in counts} == counts
    assert (source["duplicate_ids"], source["duplicate_audio"]) == (1, 2)
    assert source["chars_per_s"]["p50"] == 15
    assert report["sources"]["mine"]["rows"] == 1
    assert report["ids_in_two_splits"] == ["1"]
    assert report["audio_in_two_splits"] == ["1", "1"]
    assert report["speakers_in_two_splits"] == []
    assert report["splits"]["train"] == {"rows": 4, "hours": 8 / 3600, "speakers": 1}
    assert report["speaker_hours"]["anna"] == 8 / 3600
    table = report_table(report)
    assert "ids in two splits: 1" in table
    assert "no label" in table.splitlines()[0]


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ("A.CSV", "Path, Text\n0.wav, a quiet river\n"),
        ("a.csv", "path;text\n0.wav;a quiet river\n"),
        ("a.tsv", 'client_id\tpath\tsentence\nanna\tclip.wav\ta "quiet river\n'),
        ("a.jsonl", '{"audio_filepath": "0.wav", "text": "a\u2028quiet river", "offset": 0.0}\n'),
    ],
)
def test_manifests_as_spreadsheets_common_voice_and_nemo_write_them(manifest, text, tmp_path):
    for name in ("0.wav", "clips/clip.wav"):
        put(tmp_path / name, clip(0))
    (entry,) = read_inputs([str(put(tmp_path / manifest, text))], {})
    assert Path(entry.audio).is_file()
    assert entry.text.replace('"', "").split() == ["a", "quiet", "river"]


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "nowhere", "nowhere: no such file or folder; give a folder of audio, a manifest"),
        ({"a.xlsx": b"x"}, "a.xlsx", "is no input that is known"),
        ({"mine/a.wav": b"x"}, "mine", "no transcript lies beside the audio; clip.wav wants its words in clip.txt"),
        ({"mine/a.doc": b"x"}, "mine", "holds no audio, no Parquet files, and no metadata.csv"),
        ({"a.csv": b"sound,words\nx,y\n"}, "a.csv", r"none of its columns \(sound, words\) is known as wav; name it: columns="),
        ({"a.csv": b"path,text\nx,y,z\n"}, "a.csv", "line 2 has more fields than the header"),
        ({"a.csv": b'path,text\nx,"y\n'}, "a.csv", "line 2: unexpected end of data"),
        ({"a.csv": b"path,text,text\nx,y,z\n"}, "a.csv", "the column text is there twice"),
        ({"a.csv": b"path,text,split\nx,y,holdout\n"}, "a.csv", "line 2: the split holdout is none of train"),
        ({"a.jsonl": b'{"path": "x", "text": "y", "offset": 1.5}'}, "a.jsonl", "line 1: begins 1.5 s into its file; cut"),
        ({"mine/a.wav": b"x", "mine/a.csv": b"path,text\nx,y\n"}, "mine", "or name .*mine/a.csv"),
        ({"mine/data.arrow": b"x"}, "mine", "data.arrow: Arrow files of `datasets` are not read; write Parquet"),
        ({"a.csv": b"path,text\nx,caf\xe9\n"}, "a.csv", "is not UTF-8"),
        ({"a.csv": b""}, "a.csv", "has no rows"),
        ({"a.json": b'[{"path": "x", "text": "y"}]'}, "a.json", "is one list; write a line of JSON for each row"),
        ({"a.jsonl": b'{"path": "x", "text": "y"}\n{"path"\n'}, "a.jsonl", "line 2 is no JSON"),
    ],
)
def test_inputs_that_cannot_be_read_are_one_line(files, name, message, tmp_path):
    for path, data in files.items():
        put(tmp_path / path, data)
    with pytest.raises(ConfigError, match=message) as caught:
        read_inputs([str(tmp_path / name)], {})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("local_ray")
def test_ray_data_does_the_same(tmp_path):
    config = PrepareConfig(inputs=[str(beside(tmp_path / "mine", 9))], output_dir=str(tmp_path / "out"), rows_per_file=4)
    assert sum(split["rows"] for split in run(config)["splits"].values()) == 9
