"""The estimate: what a training takes, worked out by hand from the figures that it names."""

import json

import pytest

from ray_jobs.estimate import FIGURES
from tests.conftest import ROOT
from tiny_audio.cluster.estimate import (
    EstimateConfig,
    Shards,
    cautions,
    estimate,
    measure_shards,
    parallel_share,
    rows_per_s_per_gpu,
)
from tiny_audio.config import ConfigError
from tiny_audio.config_files import load_config

SHARDS = Shards(rows_per_epoch=100_000, bytes_per_row=300_000, mean_clip_s=8.0)


@pytest.fixture(scope="module")
def figures():
    return json.loads(FIGURES.read_text())


def config(**changes):
    made = EstimateConfig(num_steps=1000, num_workers=4, **changes)
    made.data.batch_rows = 512
    return made


def lines(settings, figures):
    return {line.name: line for line in estimate(settings, SHARDS, figures)}


def test_a_run_on_four_gpus(figures):
    found = lines(config(usd_per_gpu_hour=3.0), figures)
    share = 582.377 / 4 / 150.9591
    speed = 4 * 95.7 * share
    assert found["rows"].value == "512,000 of 100,000 an epoch"
    assert found["epochs"].value == "5.12"
    assert found["speed"].value == f"{speed:.0f} rows/s: 4 x 96 x {share:.2f}"
    assert 'step, "bf16, exact encoder"' in found["speed"].source
    assert found["step"].value == f"{512_000 / speed:.0f} ms"
    hours = float(found["time"].value.split()[0])
    assert 512_000 / speed / 3600 < hours < 512_000 / speed / 3600 + 0.06  # startup, ten validations
    assert float(found["GPU hours"].value) == pytest.approx(4 * hours, rel=0.02)
    assert float(found["dollars"].value) == pytest.approx(12 * hours, rel=0.1)
    assert found["reads"].value == f"{speed * 0.3:.0f} MB/s"
    assert found["decode cores"].value.endswith("1 node of 16")


def test_without_a_rate_no_dollars_are_said(figures):
    assert "dollars" not in lines(config(), figures)


@pytest.mark.parametrize(
    ("changes", "window", "rows_per_s"),
    [({}, "full", 95.7), ({}, "trimmed", 1290 / 8.0), ({"fp8": True}, "full", 119.0), ({"fp8": True}, "trimmed", 1670 / 8.0)],
)
def test_the_figure_follows_the_config(changes, window, rows_per_s, figures):
    settings = config(**changes)
    settings.model.encoder_window = window
    assert rows_per_s_per_gpu(settings, 8.0, figures)[0] == pytest.approx(rows_per_s)


def test_zero_3_is_slower_and_kept_frames_are_faster(figures):
    plain, sharded = (rows_per_s_per_gpu(config(zero_stage=stage), 8.0, figures)[0] for stage in (2, 3))
    assert sharded == pytest.approx(plain * 2342 / 2535)
    kept = lines(config(cache_features_gib=100.0), figures)["speed"]
    assert "frames kept" in kept.source
    assert "frames kept" not in lines(config(cache_features_gib=1.0), figures)["speed"].source


def test_more_gpus_than_were_measured_are_said_to_be(figures):
    assert parallel_share(1, figures)[0] == 1
    share, source = parallel_share(64, figures)
    assert share == parallel_share(4, figures)[0]
    assert "64 were not tried" in source


def test_what_was_not_measured_is_refused_or_said(figures):
    with pytest.raises(ConfigError, match="use_gpu=true"):
        lines(config(use_gpu=False), figures)
    small = config()
    small.data.batch_rows = 32
    assert any("8 rows a GPU and step are fewer than any measured (32)" in line for line in cautions(small, figures))
    assert len(cautions(config(), figures)) == 1


def test_shards_are_measured(shards):
    settings = load_config(EstimateConfig, ROOT / "ray_jobs/configs/seed.yaml", [f"data.train={shards}/train/*.parquet"])
    found = measure_shards(settings, lambda line: None)
    assert found.rows_per_epoch == 26
    assert found.mean_clip_s == 1.0
    assert 10_000 < found.bytes_per_row < 100_000
