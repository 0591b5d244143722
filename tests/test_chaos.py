"""Nothing lost, nothing twice: a training killed in every way it can die, on a local Ray of several nodes."""

import pytest

from tests.test_train import config_of
from tiny_audio.chaos import KILLS, chaos
from tiny_audio.config import ConfigError


@pytest.mark.slow  # six minutes: `make test-slow`
@pytest.mark.timeout(900)
def test_a_run_killed_again_and_again_loses_no_row_and_ends_with_the_same_losses(shards, tmp_path):
    config = config_of(shards, tmp_path, "run", num_steps=54, num_workers=2, zero_stage=2)
    config.data.max_wer_rows = 0
    outcome = chaos(config, lambda line: None)
    assert [struck.name for struck in outcome.kills] == [kill.name for kill in KILLS]
    retrained = {struck.name: struck.step - struck.back_at_step + 1 for struck in outcome.kills}
    assert retrained["the decode workers, at work"] <= 0  # they cost the run nothing
    assert sum(retrained.values()) > 0
    assert len(outcome.epochs) >= 4
    assert outcome.nothing_lost
    assert outcome.unequal_steps == []
    assert outcome.num_steps == 54
    with pytest.raises(ConfigError, match="there from an earlier try"):
        chaos(config, lambda line: None)
