import pytest

from tests.conftest import ROOT
from tiny_audio.config import ConfigError, TrainConfig, dataset_reference
from tiny_audio.config_files import load_config, save_config

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
        ("num_workers=17", "less than a row for each of num_workers=17"),
        ("min_workers=3", "must not be above num_workers=2"),
        ("min_workers=0", "min_workers"),
        ("model.dtype=float16", "model.dtype must be one of"),
        ("data.train={a: much}", "data.train.a wants float, not 'much'"),
        ("data.train={a: 0}", "data.train: the weight of a must be 0.01 to 100, not 0"),
        ("data.train={}", "data.train names no dataset"),
        ("data.train=[a]", "data.train wants str or dict"),
        ("data.source_weights.yodas=-1", "data.source_weights.yodas must be 0 to 100, not -1"),
        ("data.truecase_text=a.txt", "of no use without data.truecase=true"),
        ("fp8=true", "it wants model.dtype=bfloat16"),
        ("export=worst", "export must be best or last"),
    ],
)
def test_a_bad_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as caught:
        load_config(TrainConfig, QUICKSTART, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cache_features_gib=1", "zero_stage=3"], "which zero_stage=3 shares out"),
        (["cache_features_gib=1", "augment.time_masks=2"], "augment changes clips every epoch"),
        (["fp8=true", "zero_stage=3"], "it wants zero_stage 0, 1 or 2"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, QUICKSTART, overrides)


def test_data_are_named_by_glob_url_or_dataset_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/Set").mkdir(parents=True)
    assert dataset_reference("speechbrain/LoquaciousSet:small:train") == ("speechbrain/LoquaciousSet", "small", "train")
    for name in ("hf://datasets/a/b/x*.parquet", "s3://bucket/a:b:c", "data/*.parquet", "a:1:2.parquet"):
        assert dataset_reference(name) is None
    train = {"a/b:small:train": 1, "mine/Set:small:train": 2.5, "x/*.parquet": 0.5, "s3://b/x.parquet": 1}
    (tmp_path / "c.yaml").write_text(f"data: {{train: {train}}}")
    config = load_config(TrainConfig, tmp_path / "c.yaml", ["data.source_weights.yodas=0.5"])
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(TrainConfig, tmp_path / "resolved.yaml") == config
    data = config.with_absolute_paths().data
    names = ["a/b:small:train", f"{tmp_path}/mine/Set:small:train", f"{tmp_path}/x/*.parquet", "s3://b/x.parquet"]
    assert data.train_weights == dict(zip(names, [1.0, 2.5, 0.5, 1.0], strict=True))
    assert data.source_weights == {"yodas": 0.5}
    assert data.with_absolute_paths() == data


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file"):
        load_config(TrainConfig, tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        load_config(TrainConfig, tmp_path / "bad.yaml")


def config_class_of(path) -> type:
    """Of the job that a YAML file in ray_jobs/configs is for."""
    from tiny_audio.evaluation.evaluate import EvaluateConfig
    from tiny_audio.inference.files import TranscribeConfig
    from tiny_audio.lab.benchmarks.config import BenchmarkConfig
    from tiny_audio.lab.pretraining.config import PretrainConfig
    from tiny_audio.lab.synthetic.config import PrepareConfig

    others = {"evaluate": EvaluateConfig, "transcribe": TranscribeConfig, "synthetic": PrepareConfig}
    others |= {"backbones": PretrainConfig, "benchmark": BenchmarkConfig}
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
    assert config.data.train == f"speechbrain/LoquaciousSet:{name}:train"
    passes = config.num_steps * config.data.batch_rows / rows
    assert passes == pytest.approx(round(passes), rel=0.01)
    for num_workers in (1, 2, 4, 8, 16):
        load_config(TrainConfig, ROOT / f"ray_jobs/configs/loquacious_{name}.yaml", [f"num_workers={num_workers}"])
