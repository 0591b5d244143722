"""Nothing is lost and nothing is trained twice, however a training dies, on a local Ray of several nodes."""

import pytest

from tests.training.test_train import config_of
from tiny_audio.config import ConfigError
from tiny_audio.lab.drills.chaos import chaos
from tiny_audio.lab.drills.faults import FAULTS
from tiny_audio.run.metrics import read_lines


@pytest.mark.slow  # ten minutes: `make test-slow`
@pytest.mark.timeout(1500)
def test_a_run_killed_again_and_again_loses_no_row_and_ends_with_the_same_losses(shards, tmp_path):
    config = config_of(shards, tmp_path, "run", num_steps=72, num_workers=2, zero_stage=2)
    config.data.max_wer_rows = 0
    outcome = chaos(config, lambda line: None)
    assert [recovery.name for recovery in outcome.kills] == [fault.name for fault in FAULTS]
    first, *others = outcome.kills
    assert first.back_at_step == first.step + 1  # the loss of decode workers costs the run nothing
    assert [recovery.num_orphans > 0 for recovery in outcome.kills] == ["head" in recovery.name for recovery in outcome.kills]
    # a run resumes from its last whole checkpoint, or from the save that was under way, if that came through
    assert all(recovery.save_step < recovery.back_at_step <= recovery.step + 1 for recovery in others)
    at_once = [recovery for recovery in others if recovery.name.startswith("all")]
    assert [recovery.back_at_step for recovery in at_once] == [recovery.save_step + 1 for recovery in at_once]
    warnings = [line["warning"] for line in read_lines(tmp_path / "run-killed") if "warning" in line]
    assert any("this save was cut off" in line for line in warnings)
    assert any("is damaged: its checksum is not the one" in line for line in warnings)
    in_a_save = next(recovery for recovery in others if "write" in recovery.name)
    assert in_a_save.back_at_step <= in_a_save.step  # that checkpoint was not whole, so the run resumed from the one before
    assert len(outcome.epochs) >= 4
    assert outcome.nothing_lost
    assert outcome.unequal_steps == []
    assert outcome.num_steps == 72
    with pytest.raises(ConfigError, match="there from an earlier try"):
        chaos(config, lambda line: None)
