"""Two evaluations side by side: the difference is paired, and its interval tells chance from change."""

import json
import random
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tiny_audio.config import ConfigError
from tiny_audio.evaluation.compare import compare, paired_difference
from tiny_audio.evaluation.report import write_report

WORDS = ["the", "old", "baker", "carried", "seven", "lemons", "past", "a", "quiet", "river"]


def write(folder, error_rate: float, num: int = 200, seed: int = 0) -> None:
    """Utterances that share their hard parts: one word of five is hard, and wrong in `error_rate` of all cases."""
    folder.mkdir()
    rng, lines = random.Random(seed), []
    for number in range(num):
        reference = [WORDS[(number + place) % len(WORDS)] for place in range(8)]
        heard = [word if rng.random() > error_rate else "mumble" for word in reference]
        lines.append({"id": f"row-{number:03d}", "set": "test", "reference": " ".join(reference), "hypothesis": " ".join(heard)})
        lines[-1] |= {"num_errors": heard.count("mumble"), "num_words": 8, "duration_s": 2.0}
    (folder / "utterances.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_better_model_is_told_from_an_equal_one(tmp_path):
    write(tmp_path / "a", 0.10, seed=1)
    write(tmp_path / "equal", 0.10, seed=2)
    write(tmp_path / "better", 0.05, seed=3)
    equal, better = (compare(tmp_path / "a", tmp_path / name) for name in ("equal", "better"))
    assert equal["overall"]["ci_low"] < 0 < equal["overall"]["ci_high"]
    assert better["overall"]["ci_high"] < 0
    assert better["overall"]["b_better"] > 0.99
    assert better["overall"]["difference"] == pytest.approx(-0.05, abs=0.02)
    first = better["most_different"][0]
    assert abs(first["errors_a"] - first["errors_b"]) == max(abs(p["errors_a"] - p["errors_b"]) for p in better["most_different"])


def test_pairing_narrows_the_interval():
    hard = [random.Random(i).choice((0, 0, 0, 8)) for i in range(200)]
    same = paired_difference(hard, [max(0, errors - 1) for errors in hard], [8] * 200)
    other = paired_difference(hard, [max(0, errors - 1) for errors in reversed(hard)], [8] * 200)
    assert same["difference"] == other["difference"]
    assert same["ci_high"] - same["ci_low"] < (other["ci_high"] - other["ci_low"]) / 3


def test_folders_without_common_utterances_are_refused(tmp_path):
    write(tmp_path / "a", 0.1)
    write(tmp_path / "none", 0.1, num=0)
    with pytest.raises(ConfigError, match="in common"):
        compare(tmp_path / "a", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no utterances\.jsonl"):
        compare(tmp_path / "a", tmp_path)


def test_the_command_prints_a_table_and_leaves_json(tmp_path):
    write(tmp_path / "a", 0.3, seed=1)
    write(tmp_path / "b", 0.1, seed=2)
    command = [sys.executable, "-m", "ray_jobs.compare", tmp_path / "a", tmp_path / "b"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "B is better" in run.stdout
    assert json.loads((tmp_path / "b/comparison.json").read_text())["overall"]["num_utterances"] == 200
    page = write_report(tmp_path / "b", {}).read_text()
    assert "Comparison" in page
    assert "mumble" in page
    refused = subprocess.run([*command[:-1], tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
