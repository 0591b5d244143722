import numpy as np

from tests.conftest import tone
from tiny_audio.audio.clip import Clip
from tiny_audio.data.batch import WorkerBatch
from tiny_audio.data.clip_table import clip_structs, clip_table, read_structs, table_pcm
from tiny_audio.data.rows import Reject
from tiny_audio.data.stream import _from_table, _to_table

CLIPS = [
    Clip("a", tone(0.3), "the old baker", "reader"),
    Clip("mute", np.zeros(0, np.int16), ""),
    Clip("b", tone(0.1), "ü\u2028"),
]
REJECTS = [Reject("bad", "truncated", "/data/a.parquet"), Reject("", "unreadable", "/data/b.parquet")]


def same(clip: Clip, other: Clip) -> bool:
    return (clip.id, clip.text, clip.speaker) == (other.id, other.text, other.speaker) and np.array_equal(clip.pcm, other.pcm)


def test_clips_and_rejects_come_back_as_they_were_and_samples_are_views():
    structs = clip_structs([CLIPS[0], REJECTS[0], *CLIPS[1:]])
    first, reject, *others = read_structs(structs)
    assert reject == REJECTS[0]
    assert all(same(*pair) for pair in zip([first, *others], CLIPS, strict=True))
    samples = structs.field("pcm").buffers()[2]
    start = first.pcm.__array_interface__["data"][0]
    assert samples.address <= start < samples.address + samples.size


def test_a_row_of_a_table_has_the_same_samples():
    table = clip_table([*CLIPS, *REJECTS])
    rows = table.to_pylist()
    assert [row["reason"] for row in rows] == ["", "", "", "truncated", "unreadable"]
    assert [row["num_samples"] for row in rows] == [4800, 0, 1600, 0, 0]
    assert [list(pcm) for pcm in table_pcm(table.slice(1))] == [[], list(CLIPS[2].pcm), [], []]
    assert clip_table([]).num_rows == 0


def test_a_training_row_holds_the_shares_of_its_steps_whole():
    full = WorkerBatch(7, 1, 0, 5, 12.5, CLIPS, REJECTS, {"yodas": 2})
    empty, other = WorkerBatch(8, 1, 0, 5, 12.5, []), WorkerBatch(9, 1, 0, 5, 12.5, CLIPS[:1])
    for sent in ([full, empty, other], [empty]):
        table = _to_table(sent)
        assert table.num_rows == 1
        read = list(_from_table(table))
        for batch, original in zip(read, sent, strict=True):
            assert all(same(*pair) for pair in zip(batch.clips, original.clips, strict=True))
            assert batch == WorkerBatch(**vars(original) | {"clips": batch.clips})
