"""Fixtures that the tests share: one local Ray, the embedded backbones, and small shards with real audio bytes."""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from tiny_audio.config import ModelConfig, TrainConfig
from tiny_audio.data.columns import SCHEMA
from tiny_audio.lab.ray_cli import free_port
from tiny_audio.lab.synthetic.dataset import encode_audio

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's threads spin while they wait for a core that a Ray process has
os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")  # 10 s is longer than a training here
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # Ray Train looks every 2 s whether the workers are done
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less; no test drains a node
S3_PORT = free_port(5000)  # of the `s3` fixture; chosen here because `local_ray` passes its environment to workers at its start
os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}", "AWS_DEFAULT_REGION": "us-east-1"}
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
ROOT = Path(__file__).resolve().parent.parent
ENCODER = "tiny_audio/backbones/encoder"
DECODER = "tiny_audio/backbones/decoder"
TINY_WHISPER = {
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 8,
    "num_mel_bins": 128,
    "max_source_positions": 200,
    "vocab_size": 8,
    **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"], 0),
}
TINY_SMOLLM3 = {
    "hidden_size": 64,
    "num_hidden_layers": 4,  # one of them without position encoding
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 1100,
    "bos_token_id": 0,
    "eos_token_id": 4,
    "pad_token_id": 2,
}


@pytest.fixture(scope="session")
def local_ray():
    """Starts a Ray for this test run, as the quickstart does, with at least four CPUs; yields its servers' addresses."""
    from tiny_audio.lab.local_ray import local_cluster

    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3():
    """Starts a server of S3's API on this machine, with an empty bucket; yields the bucket's URL."""
    from tiny_audio.config import storage_path

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                with suppress(requests.RequestException):  # until the server has the port, a bare TCP connection may reach itself
                    requests.get(f"http://127.0.0.1:{S3_PORT}", timeout=5)
                    break
                time.sleep(0.1)
            storage_path("s3://bucket").fs.mkdir("bucket")
            yield "s3://bucket"
        finally:
            server.kill()


@pytest.fixture(scope="session")
def model():
    """Builds a model of the embedded backbones with a fresh projector."""
    import torch

    from tiny_audio.model.asr import ASRModel
    from tiny_audio.model.config import ASRConfig

    torch.manual_seed(0)
    return ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, max_new_tokens=8))


def tone(duration_s: float, hertz: float = 440.0) -> np.ndarray:
    """Makes a sine tone: (S,) int16 at 16 kHz."""
    return (8000 * np.sin(2 * np.pi * hertz * np.arange(int(duration_s * 16_000)) / 16_000)).astype(np.int16)


def write_shard(path: Path, rows: list[tuple[str, bytes, str]], rows_per_row_group: int = 4) -> None:
    """Writes (id, audio bytes, text) rows as a Parquet shard with LoquaciousSet's columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(
        [
            {"ID": name, "duration": 1.0, "wav": {"bytes": data, "path": name}, "spk_id": "a", "sex": "", "text": text}
            for name, data, text in rows
        ],
        schema=SCHEMA,
    )
    pq.write_table(table, path, row_group_size=rows_per_row_group)


def plan_of(groups, **changes):
    """A training plan over row groups, with everything off that can be."""
    from tiny_audio.data.training_plan import TrainingPlan

    plan = TrainingPlan.of(TrainConfig(model=ModelConfig(audio_model_id=ENCODER, text_model_id=DECODER)), groups, None)
    return replace(plan, **changes)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Writes a folder with train/ (3 files, 26 rows, two of them broken) and dev/ (4 rows)."""
    folder, rng = tmp_path_factory.mktemp("shards"), random.Random(0)
    words = ["the", "old", "baker", "carried", "seven", "lemons", "past", "a", "quiet", "river"]
    rows = [
        (f"row-{i:03d}", encode_audio(tone(rng.uniform(0.5, 3.0), rng.uniform(200, 800)), "wav"), " ".join(rng.sample(words, 4)))
        for i in range(30)
    ]
    rows[5] = (rows[5][0], b"", rows[5][2])
    rows[20] = (rows[20][0], rows[20][1][:999], rows[20][2])
    for number, part in enumerate((rows[:9], rows[9:17], rows[17:26])):
        write_shard(folder / f"train/train-{number}.parquet", part)
    write_shard(folder / "dev/dev-0.parquet", rows[26:])
    return folder


@pytest.fixture(scope="session")
def two_epochs(local_ray, shards, tmp_path_factory):
    """Trains with one worker, undisturbed, on unpadded clips: each row twice, except the last rows of the second epoch."""
    from tests.training.test_train import config_of
    from tiny_audio.training.driver import train

    config = config_of(shards, tmp_path_factory.mktemp("runs"), "plain", num_steps=8, keep_checkpoints=4)
    config.model.encoder_window = "trimmed"
    train(config)
    return config


@pytest.fixture(scope="session")
def hub_folders(tmp_path_factory) -> tuple[str, str]:
    """Writes an encoder and a decoder in the hub's format with few and random weights; the encoder's window is 4 s."""
    import torch

    from tiny_audio.lab.random_backbones import write_decoder, write_encoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub")
    write_encoder(folder / "encoder", TINY_WHISPER)
    write_decoder(folder / "decoder", TINY_SMOLLM3, max_shard_size="100KB")
    return str(folder / "encoder"), str(folder / "decoder")


@pytest.fixture
def one_worker(monkeypatch, tmp_path):
    """Sets up torch's process group as Ray Train does, with only this process in it."""
    import deepspeed
    import torch.distributed

    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # drops DeepSpeed's own groups too; torch's call would leave them stale
    else:
        torch.distributed.destroy_process_group()
