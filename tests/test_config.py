import re
from dataclasses import replace

import pytest

from tests.conftest import ENCODER, ROOT
from tiny_audio.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    TrainConfig,
    dataset_reference,
    embedded_backbone,
    is_hub_id,
    one_line,
)
from tiny_audio.config_files import load_config, save_config
from tiny_audio.data.prepare.config import PrepareConfig
from tiny_audio.evaluation.config import EvaluateConfig
from tiny_audio.inference.config import TranscribeConfig
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.load_test.config import LoadTestConfig
from tiny_audio.lab.pretraining.config import PretrainConfig
from tiny_audio.lab.synthetic.config import SyntheticConfig
from tiny_audio.storage import with_absolute_paths
from tiny_audio.training.ctc_head_config import CTCHeadConfig

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
        ("num_steps=many", "num_steps must be a whole number, not 'many'"),
        ("num_steps=1:30", "num_steps must be a whole number, not '1:30'"),
        ("max_loss_rise=1:30.5", "max_loss_rise must be a number, not '1:30.5'"),
        ("num_steps=1.5", "num_steps must be a whole number, not 1.5"),
        ("use_gpu=1", "use_gpu must be true or false, not 1"),
        ("name=true", "name must be text, not True"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate must be at least 0, not nan"),
        ("data=5", "data is a section: set the keys below it, such as data.train=..."),
        ("data={batch_rows: 8}", "data is a section"),
        ("data.dev.rows=8", "dev is a value, not a section"),
        ("num_steps=", "num_steps: the value is missing; num_steps=null unsets"),
        ("data.dev=*.parquet", "cannot read the value '*.parquet'; text with special characters"),
        ("trackers=[wandb, neptune]", "trackers must be tensorboard, wandb or mlflow, not 'neptune'"),
        ("num_steps", "is not key=value"),
        ("zero_stage=4", "zero_stage must be at most 3, not 4"),
        ("num_workers=17", "less than a row for each of num_workers=17"),
        ("min_workers=3", "must not be above num_workers=2"),
        ("min_workers=0", "min_workers"),
        ("model.dtype=float16", "model.dtype must be float32 or bfloat16, not 'float16'"),
        ("data.train={a: much}", "data.train.a must be a number, not 'much'"),
        ("data.train={a: 0}", "data.train.a must be at least 0.01, not 0"),
        ("data.train={}", "data.train names no dataset"),
        ("data.train={a: 1, a: 2}", "the key a is there twice"),
        ("data.train=[a]", "data.train must be text or a mapping, not ['a']"),
        ("data.source_weights.yodas=-1", "data.source_weights.yodas must be at least 0, not -1"),
        ("data.truecase_text=a.txt", "of no use without data.truecase=true"),
        ("fp8=true", "it wants model.dtype=bfloat16"),
        ("export=worst", "export must be best or last"),
    ],
)
def test_a_bad_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(TrainConfig, QUICKSTART, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cache_features_gib=1", "zero_stage=3"], "which zero_stage=3 shares out"),
        (["ctc_alone_steps=9"], "ctc_alone_steps trains by CTC: it wants ctc_weight, say 0.3"),
        (["cache_features_gib=1", "augment.time_masks=2"], "augment changes it every epoch"),
        (["fp8=true", "zero_stage=3"], "it wants zero_stage 0, 1 or 2"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, QUICKSTART, overrides)


@pytest.mark.parametrize("config", [TranscribeConfig, EvaluateConfig])
def test_fp8_without_a_gpu_is_refused(config, tmp_path):
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(ConfigError, match="fp8=true computes on GPUs: set use_gpu=true"):
        load_config(config, tmp_path / "empty.yaml", ["fp8=true"])
    assert load_config(config, tmp_path / "empty.yaml", ["fp8=true", "use_gpu=true"]).fp8


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
    data = with_absolute_paths(config).data
    names = ["a/b:small:train", f"{tmp_path}/mine/Set:small:train", f"{tmp_path}/x/*.parquet", "s3://b/x.parquet"]
    assert data.train_weights == dict(zip(names, [1.0, 2.5, 0.5, 1.0], strict=True))
    assert data.source_weights == {"yodas": 0.5}
    assert data.with_absolute_paths() == data


def test_settings_made_in_python_are_checked_too():
    for make, message in (
        (lambda: TrainConfig(num_steps=0), "num_steps must be at least 1, not 0"),
        (lambda: DataConfig(batch_rows="8"), "data.batch_rows must be a whole number, not '8'"),
        (lambda: replace(TrainConfig(), min_workers=2), "min_workers=2 must not be above num_workers=1"),
        (lambda: TrainConfig(steps=3), "unknown key steps"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_one_line_that_names_it(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    for name, content, message in (
        ("nowhere.yaml", None, "no such config file"),
        ("folder.yaml", None, "is a folder"),
        ("open.yaml", b"a: [1", "not YAML: line 1: "),
        ("tab.yaml", b"data:\n\ttrain: x", "not YAML: line 2: .*indent with spaces, not tabs"),
        ("list.yaml", b"- 1", "a config is a mapping"),
        ("twice.yaml", b"data: {dev: a}\nseed: 1\ndata: {train: b}", "not YAML: line 3: the key data is there twice"),
        ("deep.yaml", b"data:\n  dev: a\n  dev: b", "not YAML: line 3: the key dev is there twice"),
        ("utf-16.yaml", "seed: 1".encode("utf-16"), "line 1 is not UTF-8"),
        ("latin-1.yaml", b"seed: 1\nname: caf\xe9", "line 2 is not UTF-8"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{re.escape(str(tmp_path / name))}: {message}") as caught:
            load_config(TrainConfig, tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_and_the_command_line_read_values_alike(tmp_path):
    values = {
        "num_steps": {"1_000": 1000, "010": 10},
        "optimizer.learning_rate": {"1e-4": 1e-4, "2E-3": 2e-3, ".5e+1": 5.0, "3": 3.0, "1.0e-3": 1e-3},
        "max_loss_rise": {"inf": float("inf"), ".inf": float("inf")},
        "name": {"123": "123", "007": "007", "1e3": "1e3", "2026-11-25": "2026-11-25", "12:30": "12:30", "'yes'": "yes"},
        "data.truecase": {"true": True, "no": False},
        "data.max_train_rows": {"null": None, "1_000": 1000},
    }
    for key, spellings in values.items():
        section, _, name = key.rpartition(".")
        for text, value in spellings.items():
            (tmp_path / "c.yaml").write_text(f"{section}:\n  {name}: {text}" if section else f"{name}: {text}")
            in_file = load_config(TrainConfig, tmp_path / "c.yaml")
            assert in_file == load_config(TrainConfig, QUICKSTART.parent / "evaluate.yaml", [f"{key}={text}"])
            read = getattr(getattr(in_file, section) if section else in_file, name)
            assert (read, type(read)) == (value, type(value))
            save_config(in_file, tmp_path / "saved.yaml")
            assert load_config(TrainConfig, tmp_path / "saved.yaml") == in_file


def test_of_a_key_given_twice_on_the_command_line_the_last_one_counts():
    assert load_config(TrainConfig, QUICKSTART, ["num_steps=7", "seed=1", "num_steps=9"]).num_steps == 9


def test_an_embedded_backbone_has_one_name_everywhere_and_a_local_one_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/decoder").mkdir(parents=True)
    config = with_absolute_paths(TrainConfig(model=ModelConfig(audio_model_id=ENCODER, text_model_id="mine/decoder")))
    assert (config.model.audio_model_id, config.model.text_model_id) == (ENCODER, f"{tmp_path}/mine/decoder")
    assert embedded_backbone(ENCODER) == ROOT / ENCODER
    assert embedded_backbone("mine/decoder") is None


def test_a_hub_id_is_owner_and_name():
    assert is_hub_id("openai/whisper-large-v3-turbo")
    for path in ("runs/train", "./a", "/a/b", "~/a", "a", "a/b/c", "a/", "s3://a/b"):
        assert not is_hub_id(path)


def test_an_error_in_one_line_is_short_and_never_empty():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert len(one_line(ValueError("word " * 1000))) <= 300


def config_class_of(path) -> type:
    """The settings of the job that a YAML file in ray_jobs/configs is for."""
    others = {"evaluate": EvaluateConfig, "transcribe": TranscribeConfig, "synthetic": SyntheticConfig, "prepare": PrepareConfig}
    others |= {"ctc_head": CTCHeadConfig}
    others |= {"backbones": PretrainConfig, "benchmark": BenchmarkConfig, "load_test": LoadTestConfig}
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
