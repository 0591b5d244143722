"""Files of the first versions are read and gone on from, and files of later versions are refused in one line.

The folder made_by_c6a2a2f holds two small backbones and a run over the tests' shards as it lay after step 4 of 6, all written
by the code of that commit, whose files name no version.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.training.test_train import losses, scores
from tiny_audio.config import ConfigError, TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.window import read_model_window_s
from tiny_audio.run.audit import EpochAudit, audit
from tiny_audio.run.checkpoint import STATE, checkpoint_folder, load_progress
from tiny_audio.run.ledger import LEDGER
from tiny_audio.run.parts import part_paths
from tiny_audio.run.plan_file import PLAN, kept_plan
from tiny_audio.training.driver import train

MADE = ROOT / "tests/run/made_by_c6a2a2f"
MADE_AT = "/tmp/made_by_c6a2a2f"  # the folder that its files name
LOSSES = [  # of the steps, as commit c6a2a2f came to the end of the run
    7.028965541294643,
    7.002698396381579,
    7.015820671530331,
    7.009046588027687,
    6.9939626057942705,
    6.989566258021763,
]
SCORES = [7.009535471598308, 6.994111167060004, 6.990217844645183]  # after steps 0, 3 and 6


def edit_parquet(path: Path, change) -> None:
    """Rewrites a Parquet file as `change` makes it of its rows and its metadata."""
    table = pq.read_table(path)
    rows, metadata = change(table.to_pylist(), table.schema.metadata or {})
    pq.write_table(pa.Table.from_pylist(rows, table.schema.with_metadata(metadata)), path)


@pytest.fixture
def run_of_c6a2a2f(shards, tmp_path) -> TrainConfig:
    """The run, moved to a folder of this test's: the paths in its files are changed, and nothing else."""

    def moved(text: str) -> str:
        return text.replace(f"{MADE_AT}/shards", str(shards)).replace(MADE_AT, str(tmp_path))

    def moved_plan(rows, metadata):
        rows = [row | {"path": moved(row["path"]), "dataset": moved(row["dataset"])} for row in rows]
        return rows, {key: moved(value.decode()) for key, value in metadata.items()}

    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)
    run_dir = tmp_path / "runs/run"
    checkpoint = checkpoint_folder(run_dir, 4)
    for path in (run_dir / "config.yaml", run_dir / "model/config.json", checkpoint / STATE):
        path.write_text(moved(path.read_text()))
    edit_parquet(run_dir / PLAN, moved_plan)
    names = [line.split()[1] for line in (checkpoint / "SHA256SUMS").read_text().splitlines()]
    sums = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (checkpoint / "SHA256SUMS").write_text("".join(sums))
    return load_config(TrainConfig, run_dir / "config.yaml")


@pytest.mark.usefixtures("local_ray")
def test_a_run_of_the_first_versions_goes_on_as_its_own_code_would(run_of_c6a2a2f, capsys):
    config = run_of_c6a2a2f
    training = train(config)
    assert training["step"] == 6
    assert losses(config) == pytest.approx(LOSSES, rel=1e-6)  # equal to the bit on one kind of CPU
    assert scores(config) == pytest.approx(SCORES, rel=1e-6)
    assert audit(config) == [EpochAudit(0, 26, 24, 2, 0, 0)]
    assert "other settings" not in capsys.readouterr().err
    states = [json.loads((checkpoint_folder(config.run_dir, step) / STATE).read_text()) for step in (4, 6)]
    assert [state.get("format_version") for state in states] == [None, 1]
    assert states[0]["plan"] == states[1]["plan"]
    parts = [pq.read_schema(part).metadata or {} for part in part_paths(config.run_dir / LEDGER)]
    assert [part.get(b"format_version") for part in parts] == [None, None, None, b"1"]


def test_a_model_of_the_first_version_loads(run_of_c6a2a2f):
    folder = run_of_c6a2a2f.run_dir / "model"
    assert read_model_window_s(str(folder)) == 4.0
    weights = ASRModel.from_pretrained(folder).projector.state_dict()
    exported = load_file(folder / "model.safetensors")
    assert all(torch.equal(exported[f"projector.{name}"], weight) for name, weight in weights.items())


def newer_json(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 3}))


def newer_parquet(path: Path) -> None:
    edit_parquet(path, lambda rows, metadata: (rows, metadata | {b"format_version": b"3"}))


@pytest.mark.parametrize(
    ("name", "make_newer", "read"),
    [
        (f"checkpoints/step-00000004/{STATE}", newer_json, lambda config: load_progress(checkpoint_folder(config.run_dir, 4))),
        (PLAN, newer_parquet, lambda config: kept_plan(config.run_dir, config.data)),
        (f"{LEDGER}/step-00000003-rank-0.parquet", newer_parquet, audit),
        ("rejects.parquet/step-00000002-rank-0.parquet", newer_parquet, audit),
        ("model/config.json", newer_json, lambda config: ASRModel.from_pretrained(config.run_dir / "model")),
        ("model/config.json", newer_json, lambda config: read_model_window_s(str(config.run_dir / "model"))),
    ],
    ids=["checkpoint", "plan", "ledger", "rejects", "model", "model's window"],
)
def test_a_file_of_a_later_version_is_refused_in_a_line(run_of_c6a2a2f, name, make_newer, read):
    read(run_of_c6a2a2f)
    path = run_of_c6a2a2f.run_dir / name
    make_newer(path)
    readable = "versions 1 to 2" if name == "model/config.json" else "version 1"
    versions = f"has format version 3, and this tiny_audio reads {readable}; update tiny_audio to the version that wrote it"
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {versions}$"):
        read(run_of_c6a2a2f)
