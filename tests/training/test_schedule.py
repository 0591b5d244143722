import pytest

from tiny_audio.config import ConfigError, OptimizerConfig
from tiny_audio.training.schedule import learning_rate


def rates(schedule, steps, num_steps=12, warmup_steps=4):
    optimizer = OptimizerConfig(learning_rate=8e-4, schedule=schedule, warmup_steps=warmup_steps)
    return [learning_rate(optimizer, step, num_steps) for step in steps]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_warm_up_rises_in_equal_steps_to_the_full_rate(schedule):
    assert rates(schedule, range(5)) == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4])


def test_the_cosine_is_halfway_down_in_the_middle_and_near_zero_at_the_end():
    assert rates("cosine", [6, 8, 10, 11]) == pytest.approx([6.8284e-4, 4e-4, 1.1716e-4, 3.0449e-5], rel=1e-3)


def test_a_constant_rate_stays():
    assert rates("constant", [4, 8, 11]) == [8e-4] * 3


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_without_warm_up_the_first_step_has_the_full_rate(schedule):
    assert rates(schedule, [0], warmup_steps=0) == [8e-4]


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="schedule must be cosine or constant, not 'linear'"):
        OptimizerConfig(schedule="linear")
