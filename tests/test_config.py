import pytest

from tests.conftest import ROOT
from tiny_audio.config import ConfigError, TrainConfig, load_config, save_config

QUICKSTART = ROOT / "ray_jobs/configs/quickstart.yaml"


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path):
    config = load_config(TrainConfig, QUICKSTART, ["num_steps=7", "optimizer.learning_rate=3e-4", "data.decode_label=decode"])
    assert (config.num_steps, config.optimizer.learning_rate, config.data.decode_label) == (7, 3e-4, "decode")
    assert config.data.batch_rows == 16
    assert config.keep_checkpoints == TrainConfig().keep_checkpoints
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(TrainConfig, tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_stepz=7", "unknown key num_stepz; did you mean num_steps?"),
        ("data.batch=7", "unknown key data.batch"),
        ("num_steps=many", "num_steps wants int, not 'many'"),
        ("num_steps=1.5", "num_steps wants int"),
        ("data=5", "data is a section"),
        ("num_steps", "is not key=value"),
        ("zero_stage=4", "zero_stage must be one of"),
        ("num_workers=3", "does not divide"),
        ("model.dtype=float16", "model.dtype must be one of"),
    ],
)
def test_a_bad_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as caught:
        load_config(TrainConfig, QUICKSTART, [override])
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file"):
        load_config(TrainConfig, tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        load_config(TrainConfig, tmp_path / "bad.yaml")
