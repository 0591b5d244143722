"""The README's first minute: its commands, as written, make a model, a score and transcripts of 20 recordings and a CSV."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, encode_audio, tone
from tiny_audio.lab.ray_cli import WITH_TOKEN

WORDS = ["the", "old", "baker", "carried", "seven", "lemons", "past", "a", "quiet", "river"]


def section() -> str:
    page = (ROOT / "ray_jobs/README.md").read_text()
    return page.partition("## The first minute with your own recordings\n")[2].partition("\n## ")[0]


def commands() -> list[str]:
    (block,) = re.findall(r"```bash\n(.*?)```", section(), re.DOTALL)
    return block.replace("\\\n", " ").splitlines()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as its reader has it: the jobs, and recordings/ with the CSV whose header the page shows."""
    header = re.search(r"```\n(file,.*)\n", section())[1].split(",")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    (tmp_path / "ray_jobs").symlink_to(ROOT / "ray_jobs")
    with (recordings / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i in range(20):
            name = f"{i:02d}.wav"
            (recordings / name).write_bytes(encode_audio(tone(1.0 + 0.1 * i, 200 + 30 * i), "wav"))
            writer.writerow([name, " ".join(WORDS[i % 7 : i % 7 + 3]), f"speaker {i % 5}"])
    return tmp_path


@pytest.mark.slow
def test_the_first_minute_goes_as_written(local_ray, folder):
    """The training starts a Ray of its own, as it does for the page's reader; to save time, the others join the tests'."""
    environment = {**os.environ, **WITH_TOKEN, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    assert len(commands()) == 4
    output = ""
    for command in commands():
        environment["RAY_ADDRESS"] = "" if "ray_jobs.train " in command else local_ray.gcs_address
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        output += done.stdout
    assert "20 rows; splits: by speaker (5)" in output
    report = json.loads((folder / "data/mine/report.json").read_text())
    assert sum(split["rows"] for split in report["splits"].values()) == 20
    assert set(report["splits"]) == {"train", "dev", "test"}
    assert (folder / "runs/mine/model/model.safetensors").is_file()
    assert list(json.loads((folder / "runs/mine/evaluation.json").read_text())["sets"]) == ["mine"]
    with (folder / "runs/mine/transcripts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == [f"{i:02d}.wav" for i in range(20)]
    assert not any(row["error"] for row in rows)
