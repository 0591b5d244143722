import json
from importlib import import_module

import pytest

import ray_jobs.benchmark
from tiny_audio.config import ConfigError
from tiny_audio.lab.benchmarks.config import PARTS, BenchmarkConfig
from tiny_audio.lab.benchmarks.parts import scale


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_a_module_that_measures_and_help_names_it(part):
    assert callable(import_module(f"tiny_audio.lab.benchmarks.parts.{part}").measure)
    assert f"\n  {part} " in ray_jobs.benchmark.__doc__


def test_an_unknown_part_is_refused():
    with pytest.raises(ConfigError, match=r"part must be one of data, .*, not 'stop'"):
        BenchmarkConfig(part="stop")


def test_a_part_that_is_cut_off_keeps_what_it_measured(tmp_path, monkeypatch):
    def measure(config):
        yield {"name": "one GPU"}
        raise RuntimeError("the machine is gone")

    monkeypatch.setattr(scale, "measure", measure)
    with pytest.raises(RuntimeError, match="gone"):
        ray_jobs.benchmark.run(BenchmarkConfig(part="scale", output_dir=str(tmp_path)))
    assert json.loads((tmp_path / "scale.json").read_text()) == [{"name": "one GPU"}]
