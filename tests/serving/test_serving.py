"""The HTTP service, over real HTTP with OpenAI's own client: a Ray Serve app on a free port, its projector untrained."""

import io
import json
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import openai
import pytest
import ray
import soundfile
import torch
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import ServeDeploySchema

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.serving.app import build
from tiny_audio.serving.arguments import Arguments

CONFIG, CLUSTER = (
    yaml.safe_load((Path(__file__).resolve().parents[2] / f"serve/{name}.yaml").read_text()) for name in ("config", "cluster")
)
WINDOW_S = 8  # window of the embedded encoder
CAPACITY = 2 * 8 + 16  # clips in flight and queued, with the arguments of `client`


def tone(hertz: float, seconds: float = 1.0, rate: int = SAMPLE_RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def audio_file(samples: np.ndarray, rate: int = SAMPLE_RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV"} | options))
    return file.getvalue()


TONES = [audio_file(tone(hertz)) for hertz in (110, 220, 330, 440, 660, 880, 1500, 3000)]
GOOD = TONES[0]
BAD = {
    "empty": (b"", "empty"),
    "random bytes": (np.random.default_rng(0).bytes(4000), "not_audio"),
    "text": (b"Dear sir,\nplease find no audio in here.\n" * 100, "not_audio"),
    "cut WAV": (GOOD[: len(GOOD) // 2], "truncated"),
    "WAV of a header": (audio_file(tone(440)[:0]), "no_samples"),
    "NaN": (audio_file(np.full(SAMPLE_RATE, np.nan), subtype="FLOAT"), "not_finite"),
    "too long": (audio_file(tone(440, WINDOW_S + 0.5)), "too_long"),
}
UNSUPPORTED = {"model": "x", "response_format": "srt", "temperature": 0.7, "stream": True, "timestamp_granularities": ["word"]}
BAD_ROUTES = [("get", "/x", 404), ("get", "/models/x", 404), ("delete", "/models", 405), ("post", "/audio/transcriptions", 400)]


@pytest.fixture(scope="module")
def ray_serve():
    """Starts a Ray for these tests, or takes the test run's if there is one."""
    is_ours = not ray.is_initialized()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    serve.shutdown()
    if is_ours:
        ray.shutdown()


@pytest.fixture(scope="module")
def client(ray_serve, tmp_path_factory) -> openai.OpenAI:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    backbones = {"audio_model_id": "tiny_audio/backbones/encoder", "text_model_id": "tiny_audio/backbones/decoder"}
    ASRModel(ASRConfig(**backbones, max_new_tokens=12)).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    http_options = CONFIG["http_options"] | {"port": port}
    serve.start(CONFIG["proxy_location"], http_options, controller_options=CONFIG["controller_options"])
    args = Arguments(model=str(folder), max_upload_mib=1, max_batch_size=8, max_queued=16)
    serve.run(build(args), name="tiny_audio")
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)


def transcribe(client: openai.OpenAI, data: bytes, **options):
    return client.audio.transcriptions.create(**({"file": ("clip", data), "model": "tiny_audio"} | options))


def refusal(call, *args, **options) -> dict:
    """Makes a call that must be refused, checks the shape of the error and returns it with its HTTP status."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(*args, **options)
    error = caught.value.response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error | {"status": caught.value.status_code}


@pytest.fixture(scope="module")
def alone(client) -> list[str]:
    """Transcribes each tone while no other request runs."""
    return [transcribe(client, data).text for data in TONES]


def test_a_transcript_comes_as_json_or_text(client, alone):
    answer = transcribe(client, GOOD, language="en", prompt="unused", temperature=0)
    assert answer.text == alone[0]
    assert answer.usage.model_dump() == {"type": "duration", "seconds": 1.0}
    assert transcribe(client, GOOD, response_format="text") == alone[0]


def test_the_model_is_listed_and_healthy(client):
    assert [model.id for model in client.models.list()] == ["tiny_audio"]
    assert client.models.retrieve("tiny_audio").object == "model"
    with urllib.request.urlopen(f"http://{client.base_url.netloc.decode()}/healthz") as response:
        assert json.load(response) == {"status": "ok", "max_duration_s": WINDOW_S}


@pytest.mark.parametrize("kind", BAD)
def test_bad_audio_is_refused_with_its_reason(client, alone, kind):
    data, reason = BAD[kind]
    error = refusal(transcribe, client, data)
    assert (error["status"], error["code"], error["param"]) == (400, reason, "file")
    assert transcribe(client, GOOD).text == alone[0]


def test_other_rates_channels_and_depths_are_accepted(client):
    stereo = np.stack([tone(440, rate=44_100), tone(880, rate=44_100)], axis=1)
    assert transcribe(client, audio_file(stereo, 44_100)).usage.seconds == pytest.approx(1, abs=1e-3)
    assert transcribe(client, audio_file(tone(440), subtype="PCM_U8")).usage.seconds == 1
    assert transcribe(client, audio_file(tone(440, WINDOW_S), format="FLAC")).usage.seconds == WINDOW_S


@pytest.mark.parametrize("option", UNSUPPORTED)
def test_unsupported_options_are_named(client, option):
    error = refusal(transcribe, client, GOOD, **{option: UNSUPPORTED[option]})
    assert (error["status"], error["param"].removesuffix("[]")) == (404 if option == "model" else 400, option)


@pytest.mark.parametrize(("method", "path", "status"), BAD_ROUTES)
def test_errors_of_routes_have_openais_shape(client, method, path, status):
    error = refusal(getattr(client, method), path, cast_to=object)
    assert (error["status"], error["type"]) == (status, "invalid_request_error")


def test_large_uploads_are_refused(client, alone):
    assert refusal(transcribe, client, b"x" * (2 << 20))["code"] == "file_too_large"
    connection = HTTPConnection(client.base_url.netloc.decode(), timeout=60)  # its body announces no length
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    connection.request("POST", "/v1/audio/transcriptions", iter([part] + [bytes(1 << 20)] * 2), kind, encode_chunked=True)
    assert connection.getresponse().status == 413
    assert transcribe(client, GOOD).text == alone[0]


def test_concurrent_clips_are_batched_and_answered_as_alone(client, alone):
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(len(TONES)) as pool:
        together = list(pool.map(lambda data: transcribe(client, data).text, TONES))
    assert together == alone
    described = serve.get_deployment_handle("Transcriber", "tiny_audio").describe.remote().result()
    assert 1 < described["largest_batch"] <= 8  # clips gathered while the model was busy: batch_wait_s is 0


def test_a_clip_that_fails_does_not_fail_its_batch(client):
    handle = serve.get_deployment_handle("Transcriber", "tiny_audio")
    good = (tone(440) * 32767).astype(np.int16)
    expected = handle.remote(good).result()
    answers = [handle.remote(clip) for clip in (good, np.zeros((WINDOW_S + 1) * SAMPLE_RATE, np.int16), good)]
    assert [answers[0].result(), answers[2].result()] == [expected, expected]
    with pytest.raises(ValueError, match="is over 8 s"):
        answers[1].result()


def test_overload_is_refused_with_429(client, alone):
    def outcome(_) -> str:
        try:
            return transcribe(client, GOOD).text
        except openai.RateLimitError as error:
            return f"{error.code}, retry after {error.response.headers['retry-after']}"

    with ThreadPoolExecutor(3 * CAPACITY) as pool:
        outcomes = list(pool.map(outcome, range(3 * CAPACITY)))
    assert set(outcomes) == {alone[0], "rate_limit_exceeded, retry after 2"}


def test_arguments_say_what_is_wrong():
    with pytest.raises(ValidationError, match="modell"):
        Arguments(model="m", modell="m")
    with pytest.raises(ValueError, match="no saved model there; train one first"):
        build(Arguments(model="no/such/folder"))


def test_config_listens_on_this_machine_only():
    config = ServeDeploySchema.model_validate(CONFIG)
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)
    assert config.http_options.request_timeout_s > Arguments(**config.applications[0].args).timeout_s


def test_the_config_for_clusters_listens_on_every_node_with_a_replica():
    config, here = ServeDeploySchema.model_validate(CLUSTER), ServeDeploySchema.model_validate(CONFIG)
    assert (config.proxy_location, config.http_options.host) == ("EveryNode", "0.0.0.0")
    assert config.http_options.request_timeout_s == here.http_options.request_timeout_s
    assert config.applications[0].import_path == here.applications[0].import_path
    assert Arguments(**config.applications[0].args).device == "cuda"
    assert (
        CLUSTER["controller_options"]["runtime_env"]["env_vars"].items()
        <= CONFIG["controller_options"]["runtime_env"]["env_vars"].items()
    )
