"""One running service for the tests of this folder: a Ray Serve app on a free port, its projector untrained."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import openai
import pytest
import ray
import requests
import soundfile
import torch
import yaml
from ray import serve

from tests.conftest import DECODER, ENCODER, ROOT
from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.lab.ray_cli import free_port
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.serving.app import build

CONFIG = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
KEYS = {"key-of-tests": "tests {}", "key-of-one": "one {} 1"}
ORIGIN = "https://app.example"
GRACE_S = 2.0
WINDOW_S = 8  # window of the embedded encoder
ARGS = {"model_aliases": ["whisper-1"], "max_batch_size": 8, "max_queued": 16, "max_duration_s": 600, "docs": True}
ARGS |= {"skip_silence": False}  # tones are no speech


def tone(hertz: float, seconds: float = 1.0, rate: int = SAMPLE_RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def audio_file(samples: np.ndarray, rate: int = SAMPLE_RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV"} | options))
    return file.getvalue()


TONES = [audio_file(tone(hertz)) for hertz in (110, 220, 330, 440, 660, 880, 1500, 3000)]
GOOD = TONES[0]


@pytest.fixture(scope="package")
def ray_serve():
    """Starts a Ray for these tests, or takes the test run's if there is one."""
    is_ours = not ray.is_initialized()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    serve.shutdown()
    if is_ours:
        ray.shutdown()


def save_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, max_new_tokens=12)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def saved_model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="package")
def second_model(tmp_path_factory) -> str:
    """A model with another projector."""
    return save_model(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="package")
def url(ray_serve, saved_model, second_model, tmp_path_factory) -> str:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("\n".join(line.format(hashlib.sha256(key.encode()).hexdigest()) for key, line in KEYS.items()))
    environment = {
        **CONFIG["controller_options"]["runtime_env"]["env_vars"],
        "TINY_AUDIO_API_KEYS": str(keys),
        "TINY_AUDIO_CORS_ORIGINS": ORIGIN,
        "TINY_AUDIO_MAX_UPLOAD_MIB": "1",
        "TINY_AUDIO_UPLOAD_GRACE_S": str(GRACE_S),
    }
    http_options = CONFIG["http_options"] | {"port": free_port(8001)}  # 8000 is left to Ray's own command, which takes no other
    serve.start(CONFIG["proxy_location"], http_options, controller_options={"runtime_env": {"env_vars": environment}})
    serve.run(build({"model": saved_model, "models": {"second": second_model}} | ARGS), name="tiny_audio")
    return f"http://127.0.0.1:{http_options['port']}"


@pytest.fixture(scope="package")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="key-of-tests", max_retries=0, timeout=120)


@pytest.fixture(scope="package")
def http(url):
    """Sends requests with a key, by path."""
    session = requests.Session()
    session.headers["Authorization"] = "Bearer key-of-tests"
    return lambda method, path, **options: session.request(method, url + path, timeout=120, **options)


@pytest.fixture(scope="package")
def alone(client) -> list[str]:
    """Transcribes each tone while no other request runs."""
    return [transcribe(client, data).text for data in TONES]


def transcribe(client: openai.OpenAI, data: bytes, **options):
    return client.audio.transcriptions.create(**({"file": ("clip", data), "model": "tiny_audio"} | options))


def error_of(response) -> dict:
    """Checks that a response is an error in OpenAI's shape, with an id, and returns it with its HTTP status."""
    body = json.loads(response.content)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert response.headers["x-request-id"]
    return body["error"] | {"status": response.status_code}


def refusal(call, *args, **options) -> dict:
    """Makes a call of the client that must be refused, and returns its error."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(*args, **options)
    return error_of(caught.value.response)
