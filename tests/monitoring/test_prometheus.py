"""A real Prometheus scrapes a real training and a real service: every expression of dashboards and alerts finds data in it."""

import base64
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import soundfile
import yaml
from ray import serve
from ray._private import worker
from websockets.sync.client import connect

from tests.conftest import ROOT
from tests.monitoring.expressions import ALERTS, DASHBOARDS, DISCOVERY, alert_value, finds, panel_expressions, prometheus, query
from tests.training.test_train import config_of
from tiny_audio.lab.ray_cli import free_port
from tiny_audio.monitoring.metrics import SERVING, TRAINING
from tiny_audio.run.metrics import read_metrics
from tiny_audio.serving.app import build
from tiny_audio.training.driver import train

CONFIG = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus (apt install prometheus)"),
]

ON_GPUS = ("ray_tiny_audio_train_peak_flops", "ray_node_gpus_utilization")  # a CPU's peak is not known
# When these have a value, they fire; alerts_test.yml makes them.
ONLY_IN_TROUBLE = {"TrainingGone", "TrainingFailed", "TrainingNotFinite"}


@pytest.fixture(scope="module")
def api(local_ray, tmp_path_factory):
    discovery = Path(worker._global_node.get_session_dir_path()) / Path(DISCOVERY).name
    with prometheus(tmp_path_factory.mktemp("prometheus"), discovery) as url:
        yield url


@pytest.fixture(scope="module")
def trained(api, shards, tmp_path_factory):
    """Trains with two workers; returns the run's config, and when it began and ended."""
    began = time.time()
    config = config_of(shards, tmp_path_factory.mktemp("runs"), "seen", num_steps=6, num_workers=2, eval_every=3)
    train(config)
    return config, began, time.time()


def say_something(url):
    """Opens a realtime session, and commits an item of it."""
    silence = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(48_000)).decode()}
    with connect(url.replace("http", "ws", 1)) as session:
        for event in (silence, {"type": "input_audio_buffer.commit"}):
            session.send(json.dumps(event))
        while not json.loads(session.recv(timeout=60))["type"].endswith("transcription.completed"):
            pass


def answer_to(url, data):
    return requests.post(url, files={"file": ("clip.wav", data)}, data={"model": "tiny_audio"}, timeout=60).status_code


@pytest.fixture(scope="module")
def served(api, trained):
    """Serves what was trained, until some requests are answered and scraped; returns from when to when."""
    began, (config, _, _) = time.time(), trained
    port = free_port(8000)
    clip = io.BytesIO()
    soundfile.write(clip, 0.3 * np.sin(np.arange(16_000) / 10), 16_000, format="WAV")
    serve.start(CONFIG["proxy_location"], {"port": port}, controller_options=CONFIG["controller_options"])
    ready = f"http://127.0.0.1:{port}/readyz"
    early = requests.get(ready, timeout=60)
    serve.run(build({"model": str(config.run_dir / "model"), "skip_silence": False}), name="tiny_audio")
    assert (early.status_code, early.json()["for"]) == (503, ["an application"])
    assert requests.get(ready, timeout=60).json() == {"status": "ready"}
    url = f"http://127.0.0.1:{port}/v1/audio/transcriptions"
    for _ in range(2):  # some seconds apart, so that there are rates
        assert [answer_to(url, clip.getvalue()), answer_to(url, b"no audio")] == [200, 400]
        say_something(f"http://127.0.0.1:{port}/v1/realtime")
        time.sleep(2.5)
    yield began, time.time()
    serve.shutdown()


def test_every_expression_about_trainings_finds_data(api, trained):
    _, began, ended = trained
    alerts = [alert for alert in ALERTS if alert["alert"].startswith("Training") and alert["alert"] not in ONLY_IN_TROUBLE]
    asked = panel_expressions(DASHBOARDS["training"]) | panel_expressions(DASHBOARDS["data"])
    asked |= {alert_value(alert): {"run"} for alert in alerts}
    empty = [expression for expression, labels in asked.items() if not finds(api, expression, labels, began, ended)]
    assert [expression for expression in empty if not any(name in expression for name in ON_GPUS)] == []
    assert len(empty) <= 3  # MFU, its alert, and GPUs


def test_gauges_last_as_long_as_the_run_and_no_longer(api, trained):
    """The driver sets the number of steps once; Ray alone would forget it after two of its intervals."""
    _, _, ended = trained
    assert query(api, 'ray_tiny_audio_train_planned_steps{run="seen"}', ended)
    assert is_told_of_the_end(api)


def is_told_of_the_end(api):
    """Waits until all that the driver told is scraped: then its gauges have ended."""
    for _ in range(150):
        if not query(api, 'ray_tiny_audio_train_planned_steps{run="seen"}', time.time()):
            return bool(query(api, 'ray_tiny_audio_train_ends_total{run="seen",outcome="finished"}', time.time()))
        time.sleep(0.2)
    return False


def test_every_metric_of_a_training_was_there_and_true(api, trained):
    config, _, _ = trained
    assert is_told_of_the_end(api)
    told = 'last_over_time({__name__=~"ray_tiny_audio_train_.+",run="seen"}[10m])'
    values = {series["metric"]["__name__"]: float(series["value"][1]) for series in query(api, told, time.time())}
    assert {metric.exported for metric in TRAINING} - values.keys() == {ON_GPUS[0]}
    lines = read_metrics(config.run_dir)
    for key in ("step", "loss", "val_loss", "val_wer"):
        assert values[f"ray_tiny_audio_train_{key}"] == pytest.approx([line[key] for line in lines if key in line][-1])
    assert values["ray_tiny_audio_train_rows_total"] > 0


def test_every_expression_about_the_service_finds_data(api, served):
    asked = panel_expressions(DASHBOARDS["serving"])
    asked |= {alert_value(alert): set() for alert in ALERTS if alert["alert"].startswith("Serving")}
    assert [expression for expression, labels in asked.items() if not finds(api, expression, labels, *served)] == []
    names = {series["metric"]["__name__"] for series in query(api, '{__name__=~"ray_tiny_audio_serve_.+"}', served[1])}
    histograms = {metric.exported for metric in SERVING if metric.kind == "histogram"}
    assert {metric.exported for metric in SERVING} - histograms <= names
    assert {f"{name}_bucket" for name in histograms} <= names
    outcomes = {series["metric"]["outcome"] for series in query(api, "ray_tiny_audio_serve_requests_total", served[1])}
    assert outcomes >= {"ok", "not_audio"}
