"""LoquaciousSet's layout, written by the `datasets` library itself, through the path that training reads by."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from tests.conftest import plan_of, tone
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError
from tiny_audio.counts import count_reject, num_rejects, rejects_line
from tiny_audio.data.batch import window_batches
from tiny_audio.data.footers import list_shards, read_footers, read_mix
from tiny_audio.data.labels import Truecaser
from tiny_audio.data.plan import plan_pass, plan_windows
from tiny_audio.data.rows import Reject
from tiny_audio.data.shards import decode_slices, row_copies
from tiny_audio.data.sources import file_id, loquacious_source, source_of
from tiny_audio.data.stream import WorkerStream, ingest_config, train_dataset
from tiny_audio.lab.synthetic.dataset import encode_audio

IDS = {
    "voxpopuli": "20120914-0900-PLENARY-3-en_{:05d}",
    "commonvoice": "common_voice_en_{:05d}",
    "librispeech": "1089-134686-{:05d}",
    "yodas": "Y--7nYTUmS0_{:05d}.wav",
    "peoples_speech": "meeting_SLASH_03-12-2010_DOT_mp3_{:05d}.wav",
}
NUM_ROWS = 8  # of each source
YODAS_REJECTS = {"empty": 1, "no_file": 1, "not_audio": 1, "truncated": 1, "no_label": 2, "too_long": 1}  # see break_rows
README = """---
language: en
configs:
- config_name: large
  data_files:
  - {split: train, path: large/train*}
  - {split: dev, path: dev/dev*}
- config_name: small
  data_files:
  - {split: train, path: small/train*}
  - {split: dev, path: dev/dev*}
---
# A small LoquaciousSet
"""


def dataset_of(rows: list[dict]) -> datasets.Dataset:
    """Has LoquaciousSet's features. (Audio is cast to its feature, because encoding it would need torchcodec.)"""
    text, audio = datasets.Value("string"), {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    columns = {"ID": text, "duration": datasets.Value("float32"), "wav": audio, "spk_id": text, "sex": text, "text": text}
    made = datasets.Dataset.from_list(rows, features=datasets.Features(columns))
    return made.cast_column("wav", datasets.Audio(sampling_rate=16_000, decode=False))


def rows_of(first: int, count: int) -> list[dict]:
    """Makes `count` rows of each source, in turns."""
    return [
        {
            "ID": form.format(first + i),
            "duration": 0.5,
            "wav": {"bytes": encode_audio(tone(0.5, 300 + 40 * i), "wav"), "path": None},
            "spk_id": None,
            "sex": None,
            "text": f"row number {i} of paris",
        }
        for i in range(count)
        for form in IDS.values()
    ]


def break_rows(rows: list[dict]) -> None:
    """Breaks every row of one source, each in a way of its own."""
    bad = [
        {"ID": None},
        {"wav": None},
        {"wav": {"bytes": None, "path": "lost.wav"}},
        {"wav": {"bytes": b"no audio", "path": None}},
        {"wav": {"bytes": encode_audio(tone(0.5), "wav")[:900], "path": None}},
        {"text": None},
        {"text": "<unk> [noise]"},
        {"duration": 31.0, "wav": {"bytes": b"", "path": None}},
    ]
    for change, row in zip(bad, [row for row in rows if loquacious_source(row["ID"]) == "yodas"], strict=True):
        row.update(change)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Has a config large, whose files are absent, and small: two train shards of 40 rows in row groups of 5, and dev."""
    folder = tmp_path_factory.mktemp("hub") / "LoquaciousSet"
    train = rows_of(0, NUM_ROWS)
    break_rows(train)
    for name, rows in {
        "small/train-00000-of-00002": train[:20],
        "small/train-00001-of-00002": train[20:],
        "dev/dev-00000-of-00001": rows_of(100, 1),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        dataset_of(rows).to_parquet(folder / f"{name}.parquet", batch_size=5)
    (folder / "small/train-notes.txt").write_text("no shard")
    (folder / "README.md").write_text(README)
    return folder


@pytest.mark.parametrize(
    ("row_id", "source"),
    [
        *((form.format(7), source) for source, form in IDS.items()),
        ("07282016HFUUforum_SLASH_07-28-2016_HFUUforum_DOT_mp3_00000.flac", "peoples_speech"),
        ("sentences-00017", "all"),
        ("00017", "all"),
        ("", "all"),
    ],
)
def test_a_rows_source_is_in_its_id(row_id, source):
    assert source_of(row_id, "/mnt/LoquaciousSet/small/a.parquet") == source


@pytest.mark.parametrize(
    ("dataset", "path", "source"),
    [
        ("/data/calls/train/*.parquet", "/data/calls/train/a.parquet", "calls"),
        ("me/calls:default:test", "hf://datasets/me/calls@c0ffee/data/test-00000-of-00001.parquet", "calls"),
        ("/data/calls/*/b*.parquet", "/data/calls/train/b.parquet", "calls"),
        ("data/synthetic/test/*.parquet", "data/synthetic/test/voices-00000-of-00002.parquet", "voices"),
        ("", "/data/calls/dev/dev-00000-of-00001.parquet", "calls"),
        ("*.parquet", "a.parquet", "all"),
    ],
)
def test_own_data_have_the_name_of_their_dataset_whatever_their_ids(dataset, path, source):
    for row_id in ("call-17.wav", "interview.flac", "2024-11-05", "550e8400-e29b-41d4", "common_voice_en_1"):
        assert source_of(row_id, path, dataset) == source


def test_a_made_id_stays_when_the_data_move():
    here = file_id("/data/calls/train/*.parquet", "/data/calls/train/a.parquet")
    assert here == file_id("s3://bucket/calls/*/*.parquet", "s3://bucket/calls/train/a.parquet") == "calls/train/a"
    assert file_id("me/calls:default:train", "hf://datasets/me/calls@c0ffee/default/0000.parquet") == "calls/default/0000"
    assert file_id("/mnt/calls:default:train", "/mnt/calls/default/0000.parquet") == "calls/default/0000"


def test_a_dataset_reference_is_its_files(folder):
    names = [Path(path).name for path in list_shards(f"{folder}:small:train")]
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert list_shards(f"{folder}:large:dev") == [f"{folder}/dev/dev-00000-of-00001.parquet"]
    groups = read_footers(list_shards(f"{folder}:small:train"))
    assert [group.num_rows for group in groups] == [5] * 8
    assert b"huggingface" in pq.read_schema(groups[0].path).metadata


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("FOLDER:huge:train", "no such config; known: large, small"),
        ("FOLDER:small:validation", "no such split; known: train, dev"),
        ("FOLDER:large:train", r"has no Parquet files large/train\*"),
        ("FOLDER/dev:small:train", "has no README.md"),
        ("./nowhere:small:train", "no such folder, and no hub id"),
        ("speechbrain/LoquaciousSet:small:train", "without a network, give a local folder of the dataset"),
    ],
)
def test_a_wrong_reference_is_one_clear_line(folder, reference, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=message) as caught:
        list_shards(reference.replace("FOLDER", str(folder)))
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_is_read_at_its_commit(folder, tmp_path, monkeypatch):
    """The test stands in for the hub's two answers: its README and its listing."""
    (tmp_path / "c0ffee").mkdir()
    (tmp_path / "c0ffee/README.md").write_text((folder / "README.md").read_text())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(tmp_path / "c0ffee/README.md"))
    monkeypatch.setattr("huggingface_hub.HfFileSystem.glob", lambda fs, path: [path.replace("*", "0.parquet")])
    (url,) = list_shards("speechbrain/LoquaciousSet:small:train")
    assert url == "hf://datasets/speechbrain/LoquaciousSet@c0ffee/small/train0.parquet"


def test_bad_rows_are_rejected_by_source_and_reason_and_never_a_crash(folder):
    decoded = decode_slices(plan_pass(read_footers(list_shards(f"{folder}:small:train"))), 30.0, Truecaser({"paris": "Paris"}))
    clips, rejects = ([row for row in decoded if isinstance(row, kind)] for kind in (Clip, Reject))
    counts = {}
    for reject in rejects:
        count_reject(counts, reject.source, reject.reason)
    assert counts == {
        "all": {"no_id": 1},
        "yodas": YODAS_REJECTS,
    }
    assert num_rejects(counts) == 8
    assert rejects_line(counts) == "all: 1 no_id; yodas: 1 empty, 1 no_file, 2 no_label, 1 not_audio, 1 too_long, 1 truncated"
    assert Counter(clip.source for clip in clips) == dict.fromkeys(IDS.keys() - {"yodas"}, 8)
    assert clips[0].text == "Row number 0 of Paris"


def test_a_source_is_taken_as_often_as_its_weight_says():
    ids = [f"common_voice_en_{i}" for i in range(2000)]
    taken = {
        w: [[row_copies(i, "commonvoice", {"commonvoice": w}, 0, epoch) for i in ids] for epoch in range(2)]
        for w in (0.25, 1.5, 2.0)
    }
    assert sum(taken[0.25][0]) == pytest.approx(500, abs=60)
    assert sum(taken[1.5][0]) == pytest.approx(3000, abs=70)
    assert set(taken[1.5][0]) == {1, 2}
    assert set(taken[2.0][0]) == {2}
    assert sum(a and b for a, b in zip(*taken[0.25], strict=True)) == pytest.approx(125, abs=40)  # another quarter each time
    assert row_copies("1-2-3", "librispeech", {"commonvoice": 0.0}, 0, 0) == 1


def test_left_out_rows_are_counted_and_the_others_come_as_often_as_told(folder):
    window = next(plan_windows(read_footers(list_shards(f"{folder}:small:train")), 0, 20, 2, 1))
    rows = decode_slices(window.slices, 30.0, copies=lambda row_id, source: 2 * (source != "yodas"))
    assert len(rows) == window.num_rows
    batches = window_batches(window, rows, seed=0, num_workers=2)
    assert sum((Counter(batch.left_out) for batch in batches), Counter()) == {"yodas": 7}  # the eighth has no ID: its reject
    assert [reject.reason for batch in batches for reject in batch.rejects] == ["no_id"]
    taken = Counter(clip.id for batch in batches for clip in batch.clips)
    assert set(taken.values()) == {2}
    assert len(taken) == window.num_rows - 8


def read_stream(folder, num_workers, start_step=0, num_steps=6):
    """Reads all workers' streams as Ray Train splits them: sorted ids by step, and counts of rejects and of left-out rows."""
    weights = {"librispeech": 0.5, "commonvoice": 2.0}
    mix = read_mix({f"{folder}:small:train": 1.0, f"{folder}/dev/*.parquet": 2.0})
    plan = plan_of(mix, seed=3, batch_rows=10, steps_per_window=2, truecaser=Truecaser(), source_weights=weights)
    datasets_ = {"train": partial(train_dataset, plan, range(start_step, num_steps))}
    shares = ingest_config(None).configure(datasets_, num_workers, None, None)
    streams = [WorkerStream(share["train"], rank).begin_at(start_step) for rank, share in enumerate(shares)]
    ids, rejects, left_out = {}, Counter(), Counter()
    with ThreadPoolExecutor(num_workers) as pool:
        for batches in pool.map(lambda stream: [next(stream) for _ in range(start_step, num_steps)], streams):
            for batch in batches:
                ids.setdefault(batch.step, []).extend(clip.id for clip in batch.clips)
                rejects.update((reject.source, reject.reason) for reject in batch.rejects)
                left_out.update(batch.left_out)
    return {step: sorted(names) for step, names in sorted(ids.items())}, rejects, left_out


def test_a_weighted_mix_streams_alike_to_any_workers_and_from_any_step(folder, local_ray):
    ids, rejects, left_out = read_stream(folder, 1)  # an epoch is 5 steps: 40 + 2 * 5 rows
    assert read_stream(folder, 2) == (ids, rejects, left_out)
    assert read_stream(folder, 2, start_step=2)[0] == {step: ids[step] for step in range(2, 6)}
    epoch = Counter(name for step in range(5) for name in ids[step])
    sources = Counter(loquacious_source(name) for name in epoch.elements())
    # 8 train rows and 2 * 1 dev row of each source; all train rows of yodas are bad; the half of librispeech is drawn
    expected = {"voxpopuli": 10, "peoples_speech": 10, "commonvoice": 20, "yodas": 2}
    assert {name: sources[name] for name in expected} == expected
    assert 0 < sources["librispeech"] < 10
    assert left_out["librispeech"] >= 10 - sources["librispeech"]
    assert set(rejects) == {("all", "no_id")} | {("yodas", reason) for reason in YODAS_REJECTS}
