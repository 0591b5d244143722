"""The commands as people type them: each in a process of its own."""

import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import DECODER, ENCODER, ROOT, tone
from tiny_audio.lab.ray_cli import submit_job
from tiny_audio.lab.synthetic.config import SyntheticConfig
from tiny_audio.lab.synthetic.dataset import encode_audio, make_dataset
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize

WITHOUT_SETTINGS = ("__init__", "command", "compare")
VERBS = sorted(path.stem for path in (ROOT / "ray_jobs").glob("*.py") if path.stem not in WITHOUT_SETTINGS)
CONFIGS = ROOT / "ray_jobs/configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
SLOW_PACKAGES = {"torch", "ray", "transformers", "datasets", "pyarrow", "pandas"}
SHARDS = ("data.train=SHARDS/train/*", "data.dev=SHARDS/dev/*")  # the fixture's folder in place of SHARDS


@pytest.fixture
def run_job(tmp_path):
    """Runs a job in an empty folder, so that it meets no run and no data of this clone."""

    def run(verb, *arguments, options=(), timeout_s=120):
        environment = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *options, "-m", f"ray_jobs.{verb}", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout_s)

    return run


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


def split_imports(stderr):
    """The packages that a process imported under -X importtime, and what else it wrote to stderr."""
    lines = stderr.splitlines()
    imports = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    return imports, [line for line in lines if not line.startswith("import time:")]


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_every_key_and_answers_at_once(verb, run_job):
    done = run_job(verb, "--help", options=("-X", "importtime"))
    assert done.returncode == 0
    assert f"usage: python -m ray_jobs.{verb}" in done.stdout
    text, keys = done.stdout.partition("keys, with their defaults:\n")[::2]
    assert text
    entries = re.findall(r"^  (\S+?)=(.*(?:\n {30}.*)*)", keys, re.MULTILINE)
    assert len(entries) > 2
    for key, entry in entries:
        assert re.search(r"\s{2,}\S.*\w", entry), f"{key} has no meaning"
    assert not split_imports(done.stderr)[0] & SLOW_PACKAGES


def test_compare_answers_at_once_too(run_job):
    for arguments, code in ((["--help"], 0), (["nowhere", "nowhere"], 2)):
        done = run_job("compare", *arguments, options=("-X", "importtime"))
        imports, lines = split_imports(done.stderr)
        assert done.returncode == code
        assert not imports & SLOW_PACKAGES
        assert len(lines) == (code == 2)


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistyped_key_is_told_at_once(verb, run_job):
    done = run_job(verb, QUICKSTART.parent / "synthetic.yaml", "nowhere=1", options=("-X", "importtime"))
    imports, lines = split_imports(done.stderr)
    assert done.returncode == 2
    assert [line.partition("; ")[0] for line in lines] == [f"python -m ray_jobs.{verb}: unknown key nowhere"]
    assert not imports & SLOW_PACKAGES


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("train", [QUICKSTART, "nmu_workers=2"], "unknown key nmu_workers; did you mean num_workers?"),
        ("train", [QUICKSTART, "num_steps=soon"], "num_steps must be a whole number, not 'soon'"),
        ("train", ["nowhere.yaml"], "nowhere.yaml: no such config file"),
        ("train", [QUICKSTART, "data.train=nowhere/*.parquet"], "nowhere/*.parquet: no such Parquet shards"),
        ("train", [QUICKSTART, "eval_every=0"], "eval_every must be at least 1, not 0"),
        ("train", [QUICKSTART, "runs_dir=s3://key:word@bucket/runs"], "leave it to the environment"),
        ("train", [QUICKSTART, "runs_dir=nothing://bucket/runs"], "Unsupported filesystem"),
        ("quickstart", [QUICKSTART, "runs_dir=s3://bucket/runs"], "the quickstart wants a folder"),
        ("train", [QUICKSTART, *SHARDS, "model.text_model_id=./no"], "./no: "),
        ("train", [QUICKSTART, *SHARDS, "use_gpu=true"], "use_gpu=true asks for 2 GPUs"),
        ("evaluate", [CONFIGS / "evaluate.yaml", "model=./nowhere"], "./nowhere: no saved model there"),
        ("transcribe", [CONFIGS / "transcribe.yaml", "inputs=[nowhere.wav]"], "nowhere.wav: no such file or folder"),
        ("transcribe", [CONFIGS / "transcribe.yaml"], "inputs is empty"),
        ("prepare", [CONFIGS / "prepare.yaml"], "inputs is empty"),
        ("prepare", [CONFIGS / "prepare.yaml", "inputs=[nowhere.csv]"], "nowhere.csv: no such file or folder"),
        (
            "prepare",
            [CONFIGS / "prepare.yaml", "inputs=['memory://key:word@a.csv?sig=b']"],
            "prepare: memory://a.csv: no such file",
        ),
        ("benchmark", [CONFIGS / "benchmark.yaml", "output_dir=s3://bucket/x"], "results are written to folders"),
        ("estimate", [QUICKSTART, "data.train=SHARDS/train/*"], "no figure says how fast CPUs train: estimate with use_gpu=true"),
        ("estimate", [QUICKSTART, "usd_per_gpu_hour=-1"], "usd_per_gpu_hour must be at least 0, not -1"),
        ("doctor", [QUICKSTART, "num_workres=2"], "unknown key num_workres; did you mean num_workers?"),
        ("train", [QUICKSTART, "trackers=wandb"], "trackers must be a list, not 'wandb'; write trackers=[wandb]"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_2(verb, arguments, message, shards, run_job):
    done = run_job(verb, *(str(argument).replace("SHARDS", str(shards)) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.strip() and not line.startswith("... ")]) == 1


def test_transcribe_writes_a_line_for_every_file(saved, tmp_path, run_job):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for i in range(3):
        (recordings / f"{i}.wav").write_bytes(encode_audio(tone(1.0, 300 * (i + 1)), "flac" if i == 2 else "wav"))
    (recordings / "broken.mp3").write_bytes(b"no audio at all")
    (recordings / "notes.txt").write_text("not looked at")
    spoken = synthesize("the old baker carried seven lemons past a quiet river", held_out_voices()[0], random.Random(0))
    pause = np.zeros(32_000, np.int16)
    (recordings / "long.flac").write_bytes(encode_audio(np.concatenate([spoken, pause] * 4), "flac"))
    output = tmp_path / "out" / "transcripts.jsonl"
    arguments = [f"model={saved}", f"inputs=[{recordings}]", f"output={output}", "num_threads=1"]
    done = run_job("transcribe", CONFIGS / "transcribe.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    assert "4 transcribed, 0 of which looped, 1 rejected" in done.stdout
    lines = {line["path"]: line for line in map(json.loads, output.read_text().splitlines())}
    assert lines.pop(str(recordings / "broken.mp3")) == {"path": str(recordings / "broken.mp3"), "error": "not_audio"}
    starts_s = [segment["start_s"] for segment in lines.pop(str(recordings / "long.flac"))["segments"]]
    assert np.allclose(starts_s, np.arange(4) * (len(spoken) + len(pause)) / 16_000, atol=0.1)
    assert sorted(lines) == [str(recordings / f"{i}.wav") for i in range(3)]
    assert all(line["duration_s"] == 1.0 and isinstance(line["text"], str) for line in lines.values())


@pytest.mark.slow  # the quickstart makes and scores such shards
def test_synthesize_makes_shards_that_evaluate_scores(local_ray, saved, tmp_path, run_job):
    pytest.importorskip("espeakng_loader", reason="the extra [data] is not installed")
    config = SyntheticConfig(
        output_dir=str(tmp_path / "data"), num_train=40, num_dev=4, num_test=10, num_broken=6, rows_per_row_group=8
    )
    made = make_dataset(config)
    assert made["num_rows"] == 74
    assert make_dataset(config) == made
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(tmp_path / "data/test/*.parquet"), split="train")
    assert rows.column_names == ["ID", "duration", "wav", "spk_id", "sex", "text"]
    train_texts = set(load_dataset("parquet", data_files=str(tmp_path / "data/train/*.parquet"), split="train")["text"])
    assert not train_texts & set(rows["text"])
    assert rows["wav"][0]["bytes"][:4] in (b"RIFF", b"fLaC") or rows["wav"][0]["bytes"]
    arguments = [f"model={saved}", f"data={tmp_path}/data/test/*.parquet", f"output_dir={tmp_path}/scores", "control_rows=5"]
    done = run_job("evaluate", CONFIGS / "evaluate.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "scores/evaluation.json").read_text())
    assert {name: score["num_utterances"] for name, score in result["sets"].items()} == {
        "sentences": 10,
        "voices": 10,
        "words": 10,
    }
    assert set(result["controls"]) == {"untrained", "shuffled_audio"}
    assert len(result["silence"]) == 12
    lines = [json.loads(line) for line in (tmp_path / "scores/utterances.jsonl").read_text().splitlines()]
    assert len(lines) == 30


def test_a_submitted_jobs_exit_code_is_the_jobs(local_ray, shards, tmp_path, capfd):
    train = [
        "python",
        "-m",
        "ray_jobs.train",
        "ray_jobs/configs/quickstart.yaml",
        "name=job",
        "num_steps=2",
        "num_workers=1",
        f"runs_dir={tmp_path}",
    ]
    train += [f"data.train={shards}/train/*.parquet", f"data.dev={shards}/dev/*.parquet"]
    submit_job(local_ray, *train)
    assert (tmp_path / "job/model/model.safetensors").is_file()
    assert ENCODER in (tmp_path / "job/model/config.json").read_text()
    assert DECODER in (tmp_path / "job/config.yaml").read_text()
    capfd.readouterr()
    with pytest.raises(subprocess.CalledProcessError):
        submit_job(local_ray, *train, "runs_dir=runs")
    assert "a submitted job runs in a copy of its folder; give an absolute path" in capfd.readouterr().out
