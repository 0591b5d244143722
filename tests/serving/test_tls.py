"""TLS by Serve's own options: what the README says, with OpenAI's client and a certificate of one's own making."""

import asyncio
import json
import shutil
import ssl
import subprocess

import openai
import pytest
import requests

from tests.serving.conftest import GOOD, transcribe
from tests.serving.realtime.test_socket import socket
from tests.serving.test_run import config_file, running
from tiny_audio.lab.ray_cli import free_port

MAKE = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -subj /CN=speech"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl here")]


def test_a_service_with_a_certificate_is_for_those_who_trust_it(tmp_path, saved_model):
    subprocess.run([*MAKE.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=tmp_path, check=True, capture_output=True)
    http = {"port": free_port(8000), "ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}
    with running(config_file(tmp_path, http=http, model=saved_model, skip_silence=False)) as (url, server):
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        options = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
        client = openai.OpenAI(**options, http_client=openai.DefaultHttpxClient(verify=trusting))
        assert transcribe(client, GOOD).usage.seconds == 1
        with pytest.raises(openai.APIConnectionError):
            transcribe(openai.OpenAI(**options), GOOD)
        with pytest.raises(requests.ConnectionError):
            requests.get(url.replace("https", "http"), timeout=60)

        async def first_event() -> dict:
            async with socket(url, ssl=trusting) as connection:
                return json.loads(await connection.recv())

        assert asyncio.run(first_event())["type"] == "session.created"
        server.terminate()
        assert server.wait(60) == 0
