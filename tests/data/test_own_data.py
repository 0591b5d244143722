"""Parquet as people have it: other columns, no IDs, paths for audio, odd types, huge row groups, and files that are none."""

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import encode_audio, tone
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError, DataConfig
from tiny_audio.config_files import build
from tiny_audio.data import shards
from tiny_audio.data.dataset_files import glob_files
from tiny_audio.data.footers import list_shards, read_dataset, read_mix
from tiny_audio.data.plan import MAX_SLICE_ROWS, RowGroup, RowSlice, plan_pass
from tiny_audio.data.rows import Reject
from tiny_audio.data.shards import decode_slices, read_names, read_rows
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.run.plan_file import keep_plan, kept_plan

WAV = encode_audio(tone(0.5), "wav")
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COMMON_VOICE = {"audio": "wav", "sentence": "text", "client_id": "spk_id"}


def write(path, num_rows=3, row_group_size=100, **columns):
    """Writes a shard of good rows, with other columns in place of theirs; None leaves one out."""
    good = {
        "ID": [f"r{i}" for i in range(num_rows)],
        "wav": pa.array([{"bytes": WAV, "path": None}] * num_rows, AUDIO),
        "text": ["a quiet river"] * num_rows,
    }
    table = {name: values for name, values in {**good, **columns}.items() if values is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def common_voice(path, num_rows=3, **options):
    audio = pa.array([{"bytes": WAV, "path": f"{i}.wav"} for i in range(num_rows)], AUDIO)
    others = {"sentence": ["a quiet river"] * num_rows, "client_id": ["anna"] * num_rows}
    return write(path, num_rows, ID=None, wav=None, text=None, audio=audio, **others, **options)


def decode_all(dataset, columns=None):
    groups = read_dataset(str(dataset), columns=columns or {})
    return decode_slices(plan_pass(groups), 8.0, columns=columns or {})


def outcomes(rows):
    return [row.reason if isinstance(row, Reject) else row.id for row in rows]


@pytest.mark.parametrize(
    "duration",
    [
        ["0.5", "n/a", ""],
        pa.array(["x", None, "0.5"], pa.large_string()),
        [{"s": 1}] * 3,
        [[1], [], None],
        [b"\xff", b"", b"1"],
        pa.array([1, 2, 3], pa.duration("s")),
        [float("nan"), float("inf"), None],
        pa.array(["0.5", "n/a", "1"]).dictionary_encode(),
        pa.nulls(3),
    ],
)
def test_an_optional_column_of_any_type_costs_no_row(duration, tmp_path):
    rows = decode_all(write(tmp_path / "a.parquet", duration=duration, spk_id=duration, source=duration))
    assert outcomes(rows) == ["r0", "r1", "r2"]


def test_a_duration_in_text_still_tells_what_is_too_long(tmp_path):
    assert outcomes(decode_all(write(tmp_path / "a.parquet", duration=["900", "n/a", "0.5"]))) == ["too_long", "r1", "r2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [1, 2, 3]}, "a.parquet: the column text is int64; it must be text"),
        ({"text": [["a"]] * 3}, "the column text is list<.*; it must be text"),
        (
            {"wav": [[0.1, 0.2]] * 3},
            "the column wav is list<.*; it must be a struct of `bytes` and `path`, or one of these alone",
        ),
        ({"wav": [{"array": [0.1], "sampling_rate": 16_000}] * 3}, "the column wav is struct<array: .*; it must be a struct"),
        ({"wav": [{"bytes": "text", "path": "a"}] * 3}, "it must be a struct of `bytes` and `path`"),
        ({"ID": [{"a": 1}] * 3}, "the column ID is struct<.*; it must be text or whole numbers"),
        ({"text": None, "label": ["a"] * 3}, r"lacks the column text; it has ID, wav, label; map yours by columns="),
    ],
)
def test_a_wrong_required_column_is_named_before_anything_starts(columns, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_dataset(str(write(tmp_path / "a.parquet", **columns)))


@pytest.mark.parametrize(
    "columns",
    [
        {"ID": [7, 8, 9]},
        {"ID": [b"a", b"b", b"c"], "text": [b"a quiet river"] * 3},  # text as older Sparks write it
        {"wav": [WAV] * 3},
        {"wav": pa.array([WAV] * 3, pa.binary(len(WAV)))},
        {"text": pa.array(["a quiet river"] * 3).dictionary_encode()},
        {"text": pa.array(["a quiet river"] * 3, pa.large_string())},
        {"wav": pa.array([{"bytes": WAV}] * 3, pa.struct([("bytes", pa.large_binary())]))},
    ],
)
def test_the_same_in_other_types_is_taken(columns, tmp_path):
    assert all(isinstance(row, Clip) for row in decode_all(write(tmp_path / "a.parquet", **columns)))


def test_a_column_that_is_there_twice_is_named(tmp_path):
    table = pq.read_table(write(tmp_path / "a.parquet"))
    pq.write_table(table.append_column("text", table["text"]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="the column text is there twice; rename one of them"):
        read_dataset(f"{tmp_path}/a.parquet")


def test_a_row_that_breaks_costs_itself_alone(tmp_path):
    telephone = encode_audio(tone(0.5), "wav")[:20] + b"\x31\x00" + encode_audio(tone(0.5), "wav")[22:60]
    audio = [{"bytes": data, "path": None} for data in (WAV, telephone, WAV)]
    text = pa.array([b"a quiet river", b"a quiet river", b"\xff\xfe"], pa.binary()).view(pa.string())
    rows = decode_all(write(tmp_path / "a.parquet", wav=pa.array(audio, AUDIO), text=text))
    assert outcomes(rows)[0] == "r0"
    assert outcomes(rows)[2] == "no_label"
    assert isinstance(rows[1], Reject)


def paths_only(path, names):
    return write(path, len(names), wav=pa.array([{"bytes": None, "path": name} for name in names], AUDIO))


def test_audio_that_is_named_by_its_path_is_read_where_it_lies(tmp_path, monkeypatch):
    for name in ("clips/0.wav", "else/1.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(WAV)
    names = ["clips/0.wav", str(tmp_path / "else/1.wav"), f"file://{tmp_path}/clips/0.wav", "clips/gone.wav"]
    paths_only(tmp_path / "a.parquet", names)
    assert outcomes(decode_all(tmp_path / "a.parquet")) == ["r0", "r1", "r2", "no_file"]
    monkeypatch.chdir(tmp_path)
    assert outcomes(decode_all("a.parquet")) == ["r0", "r1", "r2", "no_file"]
    assert outcomes(decode_all(write(tmp_path / "b.parquet", wav=["clips/0.wav", "gone.wav", None]))) == [
        "r0",
        "no_file",
        "empty",
    ]


def test_audio_that_is_nowhere_is_told_before_anything_starts(tmp_path):
    path = paths_only(tmp_path / "a.parquet", [f"mine/{i}.wav" for i in range(8)])
    with pytest.raises(ConfigError, match=rf"{path}: holds no audio but names files, and {tmp_path}/mine/0.wav is not there"):
        read_dataset(str(path))


def test_columns_have_names_by_setting_and_rows_without_ids_get_lasting_ones(tmp_path):
    folder = tmp_path / "calls/train"
    common_voice(folder / "a.parquet", 5, row_group_size=2)
    common_voice(folder / "b.parquet", 3)
    rows = decode_all(folder / "*.parquet", COMMON_VOICE)
    ids = [f"calls/train/a#{i}" for i in range(5)] + [f"calls/train/b#{i}" for i in range(3)]
    assert outcomes(rows) == ids
    assert {(row.source, row.speaker, row.text) for row in rows} == {("calls", "anna", "a quiet river")}
    part = RowSlice(str(folder / "a.parquet"), 1, 1, 2, str(folder / "*.parquet"), "calls/train/a")
    assert [row["ID"] for row in read_rows(part, COMMON_VOICE)] == ["calls/train/a#3"]
    assert read_names(part, COMMON_VOICE) == [("calls/train/a#3", "calls", "anna")]


def test_a_plan_keeps_the_columns_and_the_made_ids_and_holds_them_in_its_identity(tmp_path):
    folder = tmp_path / "calls/train"
    common_voice(folder / "a.parquet")
    data = DataConfig(train=str(folder / "*.parquet"), columns=COMMON_VOICE)
    groups = read_mix(data.train_weights, columns=data.columns)
    keep_plan(tmp_path / "run", data, groups)
    assert kept_plan(tmp_path / "run", data) == groups

    from tests.conftest import plan_of

    plan: TrainingPlan = plan_of(groups, columns=COMMON_VOICE)
    renamed = [replace(group, file_id="others/train/a") for group in groups]
    assert plan.identity() != replace(plan, groups=tuple(renamed)).identity()
    assert plan.identity() != replace(plan, columns={}).identity()


def test_made_ids_that_would_be_alike_are_refused(tmp_path):
    for place in ("here", "there"):
        common_voice(tmp_path / place / "calls/a.parquet")
    mix = {f"{tmp_path}/{place}/calls/*.parquet": 1.0 for place in ("here", "there")}
    with pytest.raises(ConfigError, match=r"here/calls/a.parquet and .*there/calls/a.parquet: their rows have no IDs"):
        read_mix(mix, columns=COMMON_VOICE)


def test_a_column_says_the_source(tmp_path):
    path = write(tmp_path / "calls/a.parquet", corpus=["phone", None, "studio"])
    assert [row.source for row in decode_all(path, {"corpus": "source"})] == ["phone", "calls", "studio"]


def test_a_wrong_name_for_a_column_is_refused():
    with pytest.raises(ConfigError, match=r"data\.columns\.audio must be ID, wav, .* or source, not 'speech'"):
        build(DataConfig, {"columns": {"audio": "speech"}}, "data.")


def test_hidden_files_and_folders_are_none_of_the_data(tmp_path):
    for name in ("a.parquet", "._a.parquet", "_SUCCESS", ".b.parquet.crc", "sub/c.parquet", "_tmp/d.parquet", ".x/e.parquet"):
        write(tmp_path / name)
    assert [path[len(str(tmp_path)) :] for path in list_shards(f"{tmp_path}/*")] == ["/a.parquet"]
    assert [path[len(str(tmp_path)) :] for path in list_shards(f"{tmp_path}/**/*.parquet")] == ["/a.parquet", "/sub/c.parquet"]
    assert len(list_shards(f"{tmp_path}/_tmp/*.parquet")) == 1
    assert len(list_shards(f"{tmp_path}/._a.parquet")) == 1


@pytest.mark.parametrize("name", ["x[1].parquet", "what?.parquet", "a*b.parquet"])
def test_a_file_that_is_there_wins_over_a_pattern(name, tmp_path):
    write(tmp_path / "x1.parquet")
    write(tmp_path / name)
    assert glob_files(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}"]
    assert outcomes(decode_all(tmp_path / name)) == ["r0", "r1", "r2"]


def test_a_large_row_group_is_read_as_far_as_its_rows_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGE_GROUP_BYTES", 1000)
    monkeypatch.setattr("tiny_audio.data.footers.LARGE_GROUP_BYTES", 1000)
    path, num_rows = write(tmp_path / "a.parquet", 1500, row_group_size=10_000), 1500
    lines = []
    groups = read_dataset(str(path), warn_of_size=lines.append)
    assert len(lines) == 1
    assert "a.parquet: has a row group of" in lines[0]
    assert "row_group_size=100" in lines[0]
    assert [row["ID"] for row in read_rows(RowSlice(str(path), 0, 250, 420))] == [f"r{i}" for i in range(250, 420)]
    parts = list(plan_pass(groups))
    assert max(part.stop - part.start for part in parts) <= MAX_SLICE_ROWS
    assert Counter(row["ID"] for part in parts for row in read_rows(part)) == Counter(f"r{i}" for i in range(num_rows))
    read, batch = [], pq.ParquetFile.iter_batches

    def counted(self, *args, **options):
        for rows in batch(self, *args, **options):
            read.append(len(rows))
            yield rows

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    read_rows(RowSlice(str(path), 0, 250, 420))
    assert sum(read) == 500  # nothing behind the slice


@pytest.mark.slow
def test_a_row_group_of_more_than_2_gb_is_read(tmp_path):
    blob = bytes(range(256)) * 4096  # 1 MB
    audio = pa.array([{"bytes": blob, "path": None}] * 400, AUDIO)
    chunks = pa.chunked_array([audio] * 6)
    table = pa.table({"ID": [f"r{i}" for i in range(2400)], "wav": chunks, "text": ["a"] * 2400})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2400, use_dictionary=False, compression="none")
    del table, chunks, audio
    rows = read_rows(RowSlice(str(tmp_path / "a.parquet"), 0, 2390, 2400))
    assert [row["ID"] for row in rows] == [f"r{i}" for i in range(2390, 2400)]
    assert all(bytes(row["wav"]) == blob for row in rows)


def test_a_group_knows_its_dataset(tmp_path):
    path = str(write(tmp_path / "a.parquet"))
    assert read_dataset(path) == [RowGroup(path, 0, 3, path)]
