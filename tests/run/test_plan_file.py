"""The plan that a run keeps: its files may break or go away later, and may not become others."""

from pathlib import Path

import pytest

from tests.conftest import encode_audio, tone, write_shard
from tiny_audio.config import ConfigError, DataConfig, TrainConfig
from tiny_audio.run.checkpoint import Progress, save_checkpoint, state_bytes
from tiny_audio.run.plan_file import PLAN, keep_plan, planned_groups

AUDIO = encode_audio(tone(0.1), "wav")


def write(path: Path, num_rows: int, rows_per_row_group: int = 4) -> None:
    write_shard(path, [(f"row-{i}", AUDIO, "river") for i in range(num_rows)], rows_per_row_group)


def planned(config, *warn):
    return planned_groups(config.run_dir, config.data, *warn)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """A run with a plan of three files, and a checkpoint."""
    for name in "abc":
        write(tmp_path / f"train/{name}.parquet", 10)
    config = TrainConfig(runs_dir=str(tmp_path / "runs"), data=DataConfig({f"{tmp_path}/train/*.parquet": 2}))
    keep_plan(config.run_dir, config.data, planned(config))
    save_checkpoint(config.run_dir / "checkpoints/step-00000002", {}, {}, state_bytes(Progress(step=2)))
    return config


def file(config, name: str) -> Path:
    return Path(next(iter(config.data.train_weights))).parent / f"{name}.parquet"


def names(groups) -> str:
    return "".join(Path(group.path).stem for group in groups)


def test_a_file_that_is_gone_or_damaged_stays_in_the_plan_and_one_that_came_stays_out(config):
    before, warnings = planned(config), []
    assert names(before) == "aaabbbccc"
    assert {group.weight for group in before} == {2.0}
    file(config, "b").unlink()
    write(file(config, "d"), 4)
    assert planned(config, warnings.append) == before
    assert warnings == [
        f"{file(config, 'b')}: no such file; rows will be rejected",
        f"{file(config, 'd')}: not in the run's plan, left out; a run of another name takes them in",
    ]


@pytest.mark.parametrize("at", [-4, -30, -200], ids=["the end", "the length of the footer", "the footer"])
def test_a_damaged_footer_is_damage(config, at):
    path, warnings = file(config, "b"), []
    data = bytearray(path.read_bytes())
    data[at : at + 3] = b"\xff\xff\xff"
    path.write_bytes(data)
    assert names(planned(config, warnings.append)) == "aaabbbccc"
    assert str(path) in warnings[0]


def test_too_many_broken_files_are_refused(config):
    config.data.max_reject_share = 0.5
    for name in "ab":
        file(config, name).write_bytes(b"PAR1")
    limit = r"more than data\.max_reject_share=0\.5 of 3 files"
    with pytest.raises(ConfigError, match=rf"a\.parquet: not a Parquet file.*b\.parquet: not a Parquet.*{limit}"):
        planned(config)


@pytest.mark.parametrize(("num_rows", "rows_per_row_group"), [(12, 4), (10, 5), (3, 4), (0, 4)])
def test_a_file_that_is_another_now_is_refused(config, num_rows, rows_per_row_group):
    write(file(config, "b"), num_rows, rows_per_row_group)
    with pytest.raises(ConfigError, match=r"b\.parquet: its row groups are not those that .* was planned with"):
        planned(config)


def test_rows_beyond_max_train_rows_do_not_matter(config):
    config.data.max_train_rows = 15
    (config.run_dir / PLAN).unlink()
    before = planned(config)
    assert [group.num_rows for group in before] == [4, 4, 2, 4, 1]
    keep_plan(config.run_dir, config.data, before)
    write(file(config, "b"), 12)
    assert planned(config) == before
    write(file(config, "b"), 4)
    with pytest.raises(ConfigError, match=r"b\.parquet: its row groups"):
        planned(config)


def test_other_settings_and_a_run_without_a_checkpoint_are_planned_anew(config, tmp_path):
    write(file(config, "d"), 4)
    assert names(planned(config)) == "aaabbbccc"
    config.data.max_train_rows = 100
    assert names(planned(config)) == "aaabbbcccd"
    config.data.max_train_rows = None
    (config.run_dir / "checkpoints/step-00000002/SHA256SUMS").unlink()
    assert names(planned(config)) == "aaabbbcccd"
