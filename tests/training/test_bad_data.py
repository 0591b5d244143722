"""Bad data in every form does not stop a run: it leaves the rows out and reports how many, why and where."""

import io
import json
import os
import re
import struct
import threading
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.conftest import DECODER, ENCODER, encode_audio, tone, write_shard
from tiny_audio.audio.clip import Clip
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.config import ConfigError, DataConfig, ModelConfig, TrainConfig
from tiny_audio.data.batch import WorkerBatch
from tiny_audio.data.columns import SCHEMA
from tiny_audio.data.dev_clips import load_dev_clips
from tiny_audio.data.footers import read_footers
from tiny_audio.data.plan import RowSlice, plan_pass
from tiny_audio.data.rows import Reject, Row
from tiny_audio.data.shards import decode_row, decode_slices
from tiny_audio.lab.local_nodes import named_processes
from tiny_audio.lab.process_memory import anonymous_mib
from tiny_audio.run.audit import EpochAudit, audit
from tiny_audio.run.parts import drop_parts_after
from tiny_audio.run.rejects import JUDGED_ROWS, REJECTS, RejectLog, worst_files

PCM = tone(2.0)


def encode(samples, rate=16_000, format="WAV", subtype=None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def patch(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


WAV, FLAC, MP3 = encode(PCM), encode(PCM, format="FLAC"), encode_audio(PCM, "mp3")
OGG, OPUS = (encode(PCM / 32768, format="OGG", subtype=subtype) for subtype in ("VORBIS", "OPUS"))
REFUSED = {
    "no bytes": (b"", "empty"),
    "one byte": (b"R", "not_audio"),
    "an error page": (b"<!DOCTYPE html><html>404</html>" * 99, "not_audio"),
    "zeros": (bytes(5000), "not_audio"),
    "random bytes": (np.random.default_rng(0).bytes(20_000), "not_audio"),
    "an MP4 of nothing": (b"\0\0\0\x18ftypmp42" + bytes(3000), "damaged"),
    "an ID3 tag alone": (b"ID3\4" + bytes(6), "not_audio"),
    "half a WAV header": (WAV[:30], "not_audio"),
    "a WAV header alone": (WAV[:44], "truncated"),
    "a WAV without its last byte": (WAV[:-1], "truncated"),
    "half a FLAC": (half(FLAC), "truncated"),
    "a FLAC without its last frame": (FLAC[: len(FLAC) * 98 // 100], "truncated"),
    "a FLAC header alone": (FLAC[:60], "truncated"),
    "a FLAC damaged inside": (patch(FLAC, len(FLAC) // 2, b"\xff" * 200), "truncated"),
    "half an MP3": (half(MP3), "truncated"),
    "an MP3 damaged inside": (patch(MP3, len(MP3) // 2, bytes(300)), "truncated"),
    "an Ogg header alone": (OGG[:58], "truncated"),
    "an Ogg damaged inside": (patch(OGG, len(OGG) // 2, bytes(300)), "damaged"),
    "no channels": (patch(WAV, 22, b"\0\0"), "damaged"),
    "65,535 channels": (patch(WAV, 22, b"\xff\xff"), "no_samples"),
    "no sample rate": (patch(WAV, 24, bytes(4)), "damaged"),
    "a sample rate of 2 GHz": (patch(WAV, 24, b"\xff\xff\xff\x7f"), "not_audio"),
    "an unknown codec": (patch(WAV, 20, b"\x99\x99"), "not_audio"),
    "no samples": (encode(PCM[:0]), "no_samples"),
    "9 ms": (encode(tone(0.009)), "no_samples"),
    "one infinite sample": (encode(np.r_[PCM / 32768, np.inf].astype(np.float32), subtype="FLOAT"), "not_finite"),
    "samples beyond float32": (encode(np.full(16_000, 1e300), subtype="DOUBLE"), "not_finite"),
    "samples of 1e30": (encode(np.full(32_000, 1e30, np.float32), subtype="FLOAT"), "not_finite"),
    "three hours": (encode(np.zeros(3 * 3600 * 8000, np.int16), 8000, "FLAC"), "too_long"),
    "50 MB after the audio": (WAV + bytes(50_000_000), "too_long"),
}
ACCEPTED = {
    "silence": encode(np.zeros(32_000, np.int16)),
    "clipped": encode(np.full(32_000, 32767, np.int16)),
    "bytes after the end": WAV + b"garbage",
    "a chunk of odd size": patch(WAV, 40, struct.pack("<I", len(WAV) - 45)),
    "a wrong MD5": patch(FLAC, 26, bytes(16)),
    "an MP3 after its tag": b"ID3\4\0\0\0\0\x01\0" + bytes(128) + MP3,
    "Opus": OPUS,
    "A-law": encode(PCM, subtype="ALAW"),
    "six channels": encode(np.stack([PCM] * 6, 1)),
    "192 kHz": encode(np.repeat(PCM, 12), 192_000),
    "RF64": encode(PCM, format="RF64"),
    "AIFF": encode(PCM, format="AIFF"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_broken_audio_is_refused_by_its_reason(kind):
    data, reason = REFUSED[kind]
    with pytest.raises(AudioError) as caught:
        decode(memoryview(data), 30.0)
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ACCEPTED)
def test_odd_audio_is_accepted(kind):
    assert len(decode(memoryview(ACCEPTED[kind]), 30.0)) == pytest.approx(32_000, abs=2)


def test_digital_silence_under_a_label_is_a_reject():
    row = {"ID": "row-1", "text": "a quiet river", "wav": encode(np.zeros(32_000, np.int16)), "spk_id": "a"}
    row |= {"duration": None, "source": "rivers"}
    assert decode_row(row, "a.parquet", 8.0) == Reject("row-1", "silent", "a.parquet", "rivers")
    assert isinstance(decode_row({**row, "wav": WAV}, "a.parquet", 8.0), Clip)


def shard(path: Path, names: list[str], rows_per_row_group: int = 4) -> list[RowSlice]:
    write_shard(path, [(name, encode_audio(tone(0.5), "wav"), "a quiet river") for name in names], rows_per_row_group)
    return list(plan_pass(read_footers([str(path)])))


def damage_row_group(path: Path, index: int) -> None:
    """Overwrites the audio pages of one row group; the footer and the other row groups stay as they are."""
    columns = map(pq.ParquetFile(path).metadata.row_group(index).column, range(9))
    audio = next(column for column in columns if "bytes" in column.path_in_schema)
    start = audio.dictionary_page_offset or audio.data_page_offset
    path.write_bytes(patch(path.read_bytes(), start, b"\xff" * audio.total_compressed_size))


def truncate(path: Path) -> None:
    path.write_bytes(half(path.read_bytes()))


def clips_of(rows: list[Row]) -> list[Clip]:
    return [row for row in rows if isinstance(row, Clip)]


def rejects_of(rows: list[Row]) -> list[Reject]:
    return [row for row in rows if isinstance(row, Reject)]


def counts(rejects: list[Reject]) -> dict:
    return Counter((reject.reason, Path(reject.path).name) for reject in rejects)


@pytest.mark.parametrize(
    ("harm", "num_lost"),
    [
        (Path.unlink, 9),
        (truncate, 9),
        (lambda path: damage_row_group(path, 1), 4),
        (lambda path: path.write_bytes(b""), 9),
        (lambda path: shard(path, ["new-1", "new-2"]), 9 - 2),  # replaced by a shorter one
        (lambda path: pq.write_table(pa.table({"ID": ["a"] * 9}), path), 9),
    ],
    ids=["gone", "truncated", "a damaged page", "emptied", "replaced", "without columns"],
)
def test_unreadable_rows_are_rejected_one_by_one_and_the_rest_is_decoded(harm, num_lost, tmp_path):
    path = tmp_path / "a.parquet"
    slices = shard(path, [f"row-{i}" for i in range(9)]) + shard(tmp_path / "b.parquet", ["good-1"])
    harm(path)
    rows = decode_slices(slices, 8.0)
    assert counts(rejects_of(rows)) == {("unreadable", "a.parquet"): num_lost}
    assert len(clips_of(rows)) == 9 + 1 - num_lost


class FlakyFile:
    """Stands in for `fsspec.open` and raises the given errors first."""

    def __init__(self, errors: list[Exception]):
        self.errors, self.num_opened, self.real_open = errors, 0, fsspec.open

    def __call__(self, *arguments):
        self.num_opened += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.real_open(*arguments)


@pytest.mark.parametrize(
    ("scheme", "errors", "num_opened", "num_clips"),
    [
        ("file://", [OSError("503"), RuntimeError("reset")], 3, 2),
        ("file://", [OSError("503")] * 4, 4, 0),
        ("file://", [FileNotFoundError()], 1, 0),
        ("", [OSError("a bad disk")], 1, 0),
    ],
    ids=["transient", "lasting", "gone", "local"],
)
def test_reads_from_remote_storage_are_retried(scheme, errors, num_opened, num_clips, tmp_path, monkeypatch):
    (part,) = shard(tmp_path / "a.parquet", ["row-1", "row-2"])
    flaky, pauses_s = FlakyFile(list(errors)), []
    monkeypatch.setattr("tiny_audio.data.shards.fsspec.open", flaky)
    monkeypatch.setattr("tiny_audio.data.shards.time.sleep", pauses_s.append)
    rows = decode_slices([RowSlice(scheme + part.path, 0, 0, 2)], 8.0)
    assert (flaky.num_opened, len(clips_of(rows)), len(rejects_of(rows))) == (num_opened, num_clips, 2 - num_clips)
    assert pauses_s == [1.0, 5.0, 15.0][: num_opened - 1]


def test_nulls_bad_letters_and_long_labels_are_rejected_and_repeated_ids_are_not(tmp_path):
    audio = {"bytes": encode_audio(tone(1.0), "wav"), "path": None}
    good = {"ID": b"row-0", "wav": audio, "text": b"a quiet river", "spk_id": "a", "duration": 1.0}
    changes = [
        {},
        {},  # an ID may come twice
        {"spk_id": None, "duration": None},
        {"duration": float("nan")},
        {"ID": None},
        {"ID": b"row-\xff"},
        {"wav": None},
        {"wav": {"bytes": None, "path": "x"}},
        {"text": None},
        {"text": b"caf\xe9"},  # Latin-1
        {"text": b"word " * 2000},  # 10,000 characters: too long for any clip
        {"text": b"word " * 16},  # 79: too long for this one
        {"text": b"w" * 75},
    ]
    table = pa.Table.from_pylist([good | change for change in changes])
    table = table.set_column(0, "ID", pa.array([(good | c)["ID"] for c in changes], pa.binary()).view(pa.string()))
    table = table.set_column(2, "text", pa.array([(good | c)["text"] for c in changes], pa.binary()).view(pa.string()))
    pq.write_table(table, tmp_path / "a.parquet")
    rows = decode_slices(plan_pass(read_footers([str(tmp_path / "a.parquet")])), 8.0)
    assert [clip.id for clip in clips_of(rows)] == ["row-0"] * 5
    reasons = Counter(reject.reason for reject in rejects_of(rows))
    assert reasons == {"no_id": 2, "empty": 1, "no_file": 1, "no_label": 2, "label_too_long": 2}


def test_a_file_that_stalls_is_named_while_its_read_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tiny_audio.data.shards.SLOW_READ_S", 0.05)
    stalled = tmp_path / "stalled.parquet"
    os.mkfifo(stalled)
    reader = threading.Thread(target=decode_slices, args=([RowSlice(str(stalled), 7, 0, 1)], 8.0))
    reader.start()
    while not caplog.messages and reader.is_alive():
        reader.join(0.01)
    assert reader.is_alive()
    stalled.open("wb").close()
    reader.join()
    assert caplog.messages[0] == f"{stalled}: row group 7 is not read after 0.05 s, and is waited for"


def test_validation_never_goes_on_without_some_of_its_rows(tmp_path, monkeypatch):
    shard(tmp_path / "a.parquet", ["row-1"])
    shard(tmp_path / "b.parquet", ["row-2"])
    damage_row_group(tmp_path / "b.parquet", 0)
    with pytest.raises(OSError, match=r"b\.parquet: cannot be read"):  # a new start may be able to read it
        load_dev_clips(DataConfig(dev=f"{tmp_path}/*.parquet"))


def batch(step: int, num_read: int, *rejects: tuple[str, str]) -> WorkerBatch:
    rejected = [Reject(f"yodas-{step}", *reject, "yodas") for reject in rejects]
    return WorkerBatch(step, 0, 0, num_read - len(rejected), 0.0, [], rejected)


def test_a_restarted_run_counts_every_reject_once(tmp_path):
    log = RejectLog(tmp_path, 1.0)
    for step in range(4):
        log.add(batch(step, 2, ("empty", "a.parquet"), ("too_long", "b.parquet" if step else "a.parquet")))
        log.write(step + 1)
    drop_parts_after(tmp_path / REJECTS, 2)
    again = RejectLog(tmp_path, 1.0)
    again.add(batch(2, 1, ("empty", "c.parquet")))
    again.write(3)
    again.write(4)  # nothing new
    rows = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert [(row["step"], row["id"], row["source"], row["reason"]) for row in rows] == [
        (0, "yodas-0", "yodas", "empty"),
        (0, "yodas-0", "yodas", "too_long"),
        (1, "yodas-1", "yodas", "empty"),
        (1, "yodas-1", "yodas", "too_long"),
        (2, "yodas-2", "yodas", "empty"),
    ]
    assert worst_files(tmp_path) == [
        {"path": "a.parquet", "reasons": {"empty": 2, "too_long": 1}},
        {"path": "b.parquet", "reasons": {"too_long": 1}},
        {"path": "c.parquet", "reasons": {"empty": 1}},
    ]


def test_the_share_is_judged_on_enough_rows_and_afresh_each_time(tmp_path):
    log = RejectLog(tmp_path, 0.5)
    log.add(batch(0, JUDGED_ROWS - 1, *[("empty", "a")] * (JUDGED_ROWS - 1)))
    assert log.judge() == ""  # too few
    log.add(batch(1, JUDGED_ROWS - 1))
    assert log.judge() == ""  # half, but no more
    log.add(batch(2, JUDGED_ROWS, *[("empty", "a")] * 250, ("too_long", "b")))
    message = log.judge()
    assert "50% of the last 500 rows were rejected, more than data.max_reject_share=0.5" in message
    assert "most often 250 as empty in source yodas, and 250 in a;" in message
    log.add(batch(3, JUDGED_ROWS))
    assert log.judge() == ""


def config_of(folder: Path, **changes) -> TrainConfig:
    data = DataConfig(f"{folder}/train/*.parquet", f"{folder}/dev/*.parquet", max_duration_s=8.0, micro_batch_s=30.0)
    model = ModelConfig(ENCODER, DECODER, dtype="float32", encoder_window="trimmed")
    values = {"runs_dir": f"{folder}/runs", "model": model, "data": data, "use_gpu": False, "num_workers": 2, "max_failures": 0}
    return TrainConfig(**values | {"eval_every": 100, "trackers": []} | changes)


TWENTY = dict(list(REFUSED.items())[-20:])
NUM_GOOD = 99 * len(TWENTY)  # good rows, so that the broken audio is 1 %
DECODING_MIB = 700  # a decode task takes some 400; the three hours of audio alone would take 660 more


@pytest.fixture
def decode_mib():
    """Measures the peak memory of decode tasks; yields a list that holds it, in MiB, as its only number."""
    peak_mib, closed = [0.0], threading.Event()

    def watch():
        while not closed.wait(0.05):
            tasks = named_processes(os.getpid(), "_decode_window")
            peak_mib[0] = max(peak_mib[0], *(anonymous_mib([task]) for task in tasks), 0.0)

    threading.Thread(target=watch, daemon=True).start()
    yield peak_mib
    closed.set()


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory) -> Path:
    """Writes train/ with twenty kinds of broken audio among good rows, a row group of nulls, a repeated ID and a cut file."""
    folder, good = tmp_path_factory.mktemp("bad"), encode_audio(tone(0.2), "wav")
    rows = [(f"row-{i}", good, "a river") for i in range(NUM_GOOD - 1)]
    rows[1] = rows[0]
    rows.append(("long-1", good, "word " * 2000))
    for number, (data, _) in enumerate(TWENTY.values()):
        rows.insert(100 * number, (f"bad-{number}", data, "a river"))
    write_shard(folder / "train/rows.parquet", rows, 100)
    nulls = pa.table({name: pa.nulls(4, kind.type) for name, kind in zip(SCHEMA.names, SCHEMA, strict=True)})
    pq.write_table(nulls, folder / "train/nulls.parquet")
    for name in ("cut", "damaged", "away", "cut-before"):
        shard(folder / f"train/{name}.parquet", [f"{name}-{i}" for i in range(8)])
    truncate(folder / "train/cut-before.parquet")
    shard(folder / "dev/dev.parquet", ["dev-1", "dev-2"])
    return folder


def test_a_run_goes_on_past_bad_rows_and_files_that_break_before_and_after_planning(local_ray, bad_folder, decode_mib, capsys):
    """The run stops in the middle of a window; when it starts again, one more file is broken and another is mended."""
    from tiny_audio.training.driver import train

    paths = {name: bad_folder / f"train/{name}.parquet" for name in ("cut", "damaged", "away")}
    hidden = bad_folder / "away"

    def harm():
        truncate(paths["cut"])
        paths["away"].rename(hidden)

    num_rows = 100 * len(TWENTY) + 4 + 3 * 8
    num_steps = -(-num_rows // 128)
    config = config_of(bad_folder, num_steps=num_steps // 2, log_every=2, num_workers=1)
    config.data.batch_rows, config.data.steps_per_window = 128, num_steps
    train(config, harm)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if ".parquet: " in line]
    assert re.search(r"cut-before\.parquet: not a Parquet file, or a truncated one .*; left out", warning)
    stale = RejectLog(config.run_dir, 1.0)  # what a kill after the last checkpoint leaves behind
    stale.add(batch(config.num_steps, 1, ("empty", "stale.parquet")))
    stale.write(config.num_steps + 1)
    hidden.rename(paths["away"])
    damage_row_group(paths["damaged"], 1)
    config.num_steps = num_steps
    training = train(config)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "; rows will be rejected" in line]
    assert re.search(r"/cut\.parquet: not a Parquet", warning)

    rejects = pq.read_table(config.run_dir / "rejects.parquet").to_pylist()
    unreadable = [row for row in rejects if row["reason"] == "unreadable"]
    num_lost = Counter(Path(row["path"]).stem for row in unreadable)
    assert num_lost["cut"] == 8
    assert 0 < num_lost["damaged"] < 4  # the rows of its second half that were read after it broke
    assert 0 < num_lost["away"] < 8  # the rows that were read before the file came back
    reasons = {row["id"]: row["reason"] for row in rejects if row["id"]}
    broken = {f"bad-{number}": reason for number, (_, reason) in enumerate(TWENTY.values())}
    assert reasons == {**broken, "long-1": "label_too_long"}
    assert len(rejects) == len(unreadable) + len(reasons) + 4
    counted = Counter(reasons.values()) | Counter(unreadable=len(unreadable), no_id=4)
    assert training["rejects"] == {bad_folder.name: dict(counted)}
    assert training["num_rows"] == num_rows - len(rejects)
    files = {Path(file["path"]).stem: sum(file["reasons"].values()) for file in training["reject_files"]}
    assert files == {**num_lost, "rows": len(reasons), "nulls": 4}
    assert json.loads((config.run_dir / "training.json").read_text()) == training
    assert audit(config) == [EpochAudit(0, num_rows, training["num_rows"], len(rejects), 0, 0)]
    assert 0 < decode_mib[0] < DECODING_MIB


@pytest.mark.slow
def test_a_run_of_mostly_bad_rows_stops_on_all_workers_with_one_line(local_ray, tmp_path):
    from tiny_audio.training.driver import train

    good = encode_audio(tone(0.3), "wav")
    rows = [(f"row-{i}", b"" if i % 10 else good, "a quiet river") for i in range(600)]
    write_shard(tmp_path / "mine/train/rows.parquet", rows, 50)
    shard(tmp_path / "mine/dev/dev.parquet", ["dev-1"])
    config = config_of(tmp_path / "mine", num_steps=20, log_every=3, checkpoint_every=3)
    config.data.batch_rows, config.data.steps_per_window = 100, 2
    with pytest.raises(
        ConfigError, match=r"90% of the last 600 rows .* 540 as empty in source mine, and 540 in .*rows.parquet;"
    ) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert pq.read_table(config.run_dir / "rejects.parquet").num_rows == 540
    assert not (config.run_dir / "training.json").exists()
