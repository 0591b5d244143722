import hashlib
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_shard
from tiny_audio.config import ConfigError
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.plan import RowGroup, epoch_groups, plan_windows, steps_per_epoch

GROUPS = [RowGroup(f"{i // 3}.parquet", i % 3, rows) for i, rows in enumerate([7, 5, 9, 4, 8, 6, 3])]  # 42 rows


def rows_of(window):
    return [(part.path, part.row_group, row) for part in window.slices for row in range(part.start, part.stop)]


def plan(num_steps, start_step=0, seed=0):
    return list(plan_windows(GROUPS, seed, batch_rows=4, steps_per_window=3, num_steps=num_steps, start_step=start_step))


def test_every_epoch_has_every_row_once():
    assert steps_per_epoch(GROUPS, 4) == 11
    windows = plan(num_steps=33)
    for epoch in range(3):
        rows = [row for window in windows if window.epoch == epoch for row in rows_of(window)]
        assert len(rows) == 42
        assert set(Counter(rows).values()) == {1}
    assert [window.first_step for window in windows[:5]] == [0, 3, 6, 9, 11]
    assert [window.num_steps for window in windows[:5]] == [3, 3, 3, 2, 3]


def test_epochs_and_seeds_differ_and_the_same_ones_do_not():
    windows = plan(num_steps=22)
    assert windows == plan(num_steps=22)
    assert rows_of(windows[0]) != rows_of(windows[4])
    assert rows_of(windows[0]) != rows_of(plan(num_steps=22, seed=1)[0])


@pytest.mark.parametrize("start_step", [0, 1, 3, 10, 11, 16, 32])
def test_a_plan_from_the_middle_is_the_end_of_the_whole_plan(start_step):
    whole = plan(num_steps=33)
    assert plan(num_steps=33, start_step=start_step) == [w for w in whole if w.first_step + w.num_steps > start_step]


def test_a_plan_without_weights_stays_as_it_is():
    """Runs were started with these plans, and another order would end their resuming."""
    windows = [
        (w.epoch, w.index, w.first_step, w.num_steps, [(s.path, s.row_group, s.start, s.stop) for s in w.slices])
        for w in plan(num_steps=33)
    ]
    assert hashlib.sha256(repr(windows).encode()).hexdigest()[:16] == "96754d52b3b7e83b"


def mix(**weights):
    """Makes a dataset of eight row groups of 5 rows for each weight."""
    return [RowGroup(f"{name}.parquet", i, 5, name, weight) for name, weight in weights.items() for i in range(8)]


def taken(groups, epoch, seed=0):
    return Counter((group.path[0], group.index) for group in epoch_groups(groups, seed, epoch))


def test_a_weight_is_how_often_an_epoch_takes_a_row_group():
    groups = mix(a=1.0, b=2.0, c=0.5, d=0.25, e=1.5)
    for epoch in range(4):
        counts = Counter(name for name, _ in taken(groups, epoch).elements())
        assert counts == {"a": 8, "b": 16, "c": 4, "d": 2, "e": 12}
        assert {n for (name, _), n in taken(groups, epoch).items() if name == "b"} == {2}
    both = taken(groups, 0) + taken(groups, 1)
    assert [both["c", i] for i in range(8)] == [1] * 8  # the halves of two epochs are the whole
    assert [both["e", i] for i in range(8)] == [3] * 8
    four = sum((taken(groups, epoch) for epoch in range(4)), Counter())
    assert [four["d", i] for i in range(8)] == [1] * 8
    assert taken(groups, 0) != taken(groups, 0, seed=1)


@pytest.mark.parametrize("start_step", [0, 1, 13, 14, 30, 59])
def test_a_weighted_plan_is_whole_and_goes_on_from_any_step(start_step):
    groups = mix(a=2.0, c=0.3)
    whole = list(plan_windows(groups, 0, 7, 3, 60))
    for epoch in range(3):
        rows = Counter(row for window in whole if window.epoch == epoch for row in rows_of(window))
        wanted = {("a.parquet", i): n for (name, i), n in taken(groups, epoch).items() if name == "a"}
        assert {key[:2]: n for key, n in rows.items() if key[0] == "a.parquet"} == wanted
        assert len(rows) == 5 * len(taken(groups, epoch))
    steps = [window.first_step + i for window in whole for i in range(window.num_steps)]
    assert steps[:60] == list(range(60))
    rest = list(plan_windows(groups, 0, 7, 3, 60, start_step))
    assert rest == [w for w in whole if w.first_step + w.num_steps > start_step]


def test_an_epoch_may_be_empty():
    groups = [RowGroup("a.parquet", 0, 5, "a", 0.25)]
    windows = list(plan_windows(groups, 0, 4, 3, num_steps=4))
    assert [(window.first_step, window.num_rows) for window in windows] == [(0, 5), (2, 5)]
    assert windows[1].epoch == windows[0].epoch + 4


def test_shards_are_checked_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="no such Parquet shards"):
        list_shards(str(tmp_path / "*.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ConfigError, match=r"bad\.parquet: not a Parquet file, or a truncated one"):
        read_footers(list_shards(str(tmp_path / "*.parquet")))
    write_shard(tmp_path / "good.parquet", [(f"r{i}", b"x", "t") for i in range(10)])
    groups = read_footers([str(tmp_path / "good.parquet")], max_rows=6)
    assert [group.num_rows for group in groups] == [4, 2]
    pq.write_table(pa.table({"ID": ["a"], "wav": [[0.5]], "text": ["b"]}), tmp_path / "flat.parquet")
    with pytest.raises(ConfigError, match=r"flat\.parquet: the column wav is list<element: double>; it must be a struct"):
        read_footers([str(tmp_path / "flat.parquet")])


def test_a_long_plan_needs_no_files_and_starts_near_its_end_at_once():
    groups = [RowGroup(f"/absent/{i // 100}.parquet", i % 100, 100) for i in range(1000)]  # 100,000 rows
    whole = list(plan_windows(groups, 0, 512, 4, num_steps=196))
    assert [window.num_steps for window in whole] == [4] * 49
    assert set(Counter(row for window in whole for row in rows_of(window)).values()) == {1}
    assert sum(window.num_rows for window in whole) == 100_000
    rest = plan_windows(groups, 0, 512, 4, num_steps=196, start_step=193)
    assert next(rest) == whole[-1]
    assert next(rest, None) is None
