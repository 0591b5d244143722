from collections import Counter

import pytest

from tests.conftest import write_shard
from tiny_audio.config import ConfigError
from tiny_audio.plan import RowGroup, list_shards, plan_windows, read_footers, steps_per_epoch

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


def test_shards_are_checked_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="no such Parquet shards"):
        list_shards(str(tmp_path / "*.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ConfigError, match=r"bad\.parquet: not a Parquet file, or a truncated one"):
        read_footers(list_shards(str(tmp_path / "*.parquet")))
    write_shard(tmp_path / "good.parquet", [(f"r{i}", b"x", "t") for i in range(10)])
    groups = read_footers([str(tmp_path / "good.parquet")], max_rows=6)
    assert [group.num_rows for group in groups] == [4, 2]
