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


def config_class_of(path) -> type:
    """Of the job that a YAML file in ray_jobs/configs is for."""
    from tiny_audio.evaluate import EvaluateConfig
    from tiny_audio.prepare import PrepareConfig
    from tiny_audio.pretrain import PretrainConfig
    from tiny_audio.transcribe_files import TranscribeConfig

    others = {"evaluate": EvaluateConfig, "transcribe": TranscribeConfig, "synthetic": PrepareConfig, "backbones": PretrainConfig}
    return others.get(path.stem, TrainConfig)


CONFIGS = sorted((ROOT / "ray_jobs/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_a_run_is_named_after_its_file(path):
    config = load_config(config_class_of(path), path)
    if isinstance(config, TrainConfig):
        assert config.name == path.stem
        assert config.checkpoint_every <= config.num_steps
        assert config.optimizer.warmup_steps < config.num_steps / 5


@pytest.mark.parametrize(("name", "rows"), [("small", 107_000), ("medium", 1_074_114), ("large", 10_000_000)])
def test_a_loquacious_run_is_whole_passes_and_divides_among_gpus(name, rows):
    config = load_config(TrainConfig, ROOT / f"ray_jobs/configs/loquacious_{name}.yaml")
    assert f"LoquaciousSet/{name}/train" in config.data.train
    passes = config.num_steps * config.data.batch_rows / rows
    assert passes == pytest.approx(round(passes), rel=0.01)
    for num_workers in (1, 2, 4, 8, 16):
        load_config(TrainConfig, ROOT / f"ray_jobs/configs/loquacious_{name}.yaml", [f"num_workers={num_workers}"])
