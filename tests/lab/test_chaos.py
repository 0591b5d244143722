"""Nothing lost, nothing twice: a training killed in every way it can die, on a local Ray of several nodes."""

import pytest

from tests.training.test_train import config_of
from tiny_audio.config import ConfigError
from tiny_audio.lab.drills.chaos import KILLS, chaos
from tiny_audio.run.metrics import read_lines


@pytest.mark.slow  # ten minutes: `make test-slow`
@pytest.mark.timeout(1500)
def test_a_run_killed_again_and_again_loses_no_row_and_ends_with_the_same_losses(shards, tmp_path):
    config = config_of(shards, tmp_path, "run", num_steps=72, num_workers=2, zero_stage=2)
    config.data.max_wer_rows = 0
    outcome = chaos(config, lambda line: None)
    assert [struck.name for struck in outcome.kills] == [kill.name for kill in KILLS]
    first, *others = outcome.kills
    assert first.back_at_step == first.step + 1  # decode workers cost the run nothing
    assert [struck.num_orphans > 0 for struck in outcome.kills] == ["head" in struck.name for struck in outcome.kills]
    assert all(struck.save_step < struck.back_at_step <= struck.step + 1 for struck in others)  # or a save that came through
    at_once = [struck for struck in others if struck.name.startswith("all")]
    assert [struck.back_at_step for struck in at_once] == [struck.save_step + 1 for struck in at_once]
    warnings = [line["warning"] for line in read_lines(tmp_path / "run-killed") if "warning" in line]
    assert any("this save was cut off" in line for line in warnings)
    assert any("is damaged: its checksum is not the one" in line for line in warnings)
    in_a_save = next(struck for struck in others if "write" in struck.name)
    assert in_a_save.back_at_step <= in_a_save.step  # it was not whole, and the one before is gone on from
    assert len(outcome.epochs) >= 4
    assert outcome.nothing_lost
    assert outcome.unequal_steps == []
    assert outcome.num_steps == 72
    with pytest.raises(ConfigError, match="there from an earlier try"):
        chaos(config, lambda line: None)
