"""What the proxies' edge does with requests before the application has them, over real connections."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import openai
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.conftest import ROOT
from tests.serving.conftest import CONFIG, GOOD, GRACE_S, ORIGIN, error_of, refusal, transcribe
from tiny_audio.ray_names import PROXY_HINTS
from tiny_audio.serving.arguments import MIDDLEWARES, Arguments
from tiny_audio.serving.edge import require_local, with_time
from tiny_audio.serving.errors import APIError
from tiny_audio.serving.keys import read_callers
from tiny_audio.serving.paths import PAGE_PATH, path_of

HEAD = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-of-tests\r\n"
FORM_TYPE = "Content-Type: multipart/form-data; boundary=x\r\n"
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny_audio\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n--x--\r\n' % GOOD
)


def connect(client: openai.OpenAI, data: bytes) -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
    connection.sendall(data)
    return connection


def answer_on(connection: socket.socket) -> tuple[str, dict]:
    """Reads until the server closes the connection; returns the status line and the JSON."""
    head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert b"x-request-id" in head.lower()
    return head.decode().splitlines()[0], json.loads(body)


def test_a_key_is_wanted_of_everybody(client, http, url):
    for key in ("wrong", "key-of-test", "key-of-tests2"):
        error = refusal(transcribe, client.with_options(api_key=key), GOOD)
        assert (error["status"], error["code"]) == (401, "invalid_api_key")
    assert error_of(http("GET", "/openapi.json", headers={"Authorization": "Basic eDp5"}))["status"] == 401
    assert http("GET", "/healthz", headers={"Authorization": ""}).ok  # load balancers have none


def test_a_key_allows_as_many_requests_at_a_time_as_it_says(client, alone):
    one = client.with_options(api_key="key-of-one")
    with connect(client, (HEAD.replace("tests", "one") + FORM_TYPE + f"Content-Length: {len(FORM)}\r\n\r\n").encode() + FORM[:9]):
        time.sleep(0.3)
        assert refusal(transcribe, one, GOOD)["status"] == 429
        assert transcribe(client, GOOD).text == alone[0]
    time.sleep(0.3)
    assert transcribe(one, GOOD).text == alone[0]


def test_large_uploads_are_refused(client, alone):
    assert refusal(transcribe, client, b"x" * (2 << 20))["code"] == "file_too_large"
    connection = HTTPConnection(client.base_url.netloc.decode(), timeout=60)  # its body announces no length
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": "Bearer key-of-tests"}
    pieces = iter([FORM[:200]] + [bytes(1 << 20)] * 2)
    connection.request("POST", "/v1/audio/transcriptions", pieces, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    assert transcribe(client, GOOD).text == alone[0]


def test_slow_uploads_are_ended_and_hold_nobody_up(client, alone):
    begun = time.monotonic()
    slow = [connect(client, f"{HEAD}{FORM_TYPE}Content-Length: 1000\r\n\r\nx".encode()) for _ in range(100)]
    assert transcribe(client, GOOD).text == alone[0]
    for connection in slow:
        status, body = answer_on(connection)
        assert status == "HTTP/1.1 408 Request Timeout"
        assert body["error"]["code"] == "request_timeout"
    assert time.monotonic() - begun > GRACE_S


def test_what_is_no_request_is_answered_in_openais_shape(client):
    for nonsense in (f"{HEAD}Content-Length: -5\r\n\r\n", f"{HEAD}Content-Length: many\r\n\r\n", "hello\r\n\r\n"):
        status, body = answer_on(connect(client, nonsense.encode()))
        assert status == "HTTP/1.1 400 Bad Request"
        assert body["error"]["type"] == "invalid_request_error"


def test_a_body_or_a_handshake_that_is_none_is_answered_in_openais_shape(client):
    body = f"{HEAD}{FORM_TYPE}Transfer-Encoding: chunked\r\n\r\nmany\r\n"
    handshake = "GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    for nonsense, says in ((body, "not a valid HTTP request"), (handshake, "missing Sec-WebSocket-Key")):
        status, answer = answer_on(connect(client, nonsense.encode()))
        assert status == "HTTP/1.1 400 Bad Request"
        assert says in answer["error"]["message"]


def test_an_offer_of_http_2_loses_no_body(client, alone):
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    connection = connect(client, f"{HEAD}{FORM_TYPE}{offer}Content-Length: {len(FORM)}\r\n\r\n".encode() + FORM)
    with connection, connection.makefile("rb") as file:
        assert file.readline() == b"HTTP/1.1 200 OK\r\n"
        lines = list(iter(file.readline, b"\r\n"))
        (length,) = [int(line.partition(b":")[2]) for line in lines if line.lower().startswith(b"content-length")]
        assert json.loads(file.read(length))["text"] == alone[0]


def test_requests_keep_their_ids_and_paths_may_end_in_a_slash(http):
    assert http("GET", "/v1/models/", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 200, "naïve".encode()):
        assert http("GET", "/v1/models", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad
    head = http("HEAD", "/v1/models")
    assert (head.status_code, head.content) == (200, b"")


def test_pages_of_listed_origins_may_call(http):
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-lang"}
    allowed = http("OPTIONS", "/v1/audio/transcriptions", headers={"Origin": ORIGIN, **ask})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    other = http("OPTIONS", "/v1/audio/transcriptions", headers={"Origin": "https://evil.example", **ask})
    assert "access-control-allow-origin" not in other.headers
    refused = http("POST", "/v1/audio/transcriptions", headers={"Origin": ORIGIN, "Authorization": ""})
    assert (error_of(refused)["status"], refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_nobody_else_ends_the_service(http):
    assert error_of(http("POST", "/-/drain"))["status"] == 404


def test_paths_are_guarded_behind_a_prefix_too():
    """uvicorn puts `http_options.root_path` before the path of every request."""
    scope = {"type": "http", "root_path": "/speech", "path": "/speech/-/routes", "client": ("192.0.2.1", 40_000)}
    with pytest.raises(APIError, match="nothing is at /-/routes"):
        require_local(scope)
    require_local(scope | {"client": ("127.0.0.1", 40_000)})
    assert path_of({"path": "/speech", "root_path": "/speech"}) == PAGE_PATH


def test_a_client_who_leaves_frees_its_place(client, alone):
    request = f"{HEAD}{FORM_TYPE}Content-Length: {len(FORM)}\r\n\r\n".encode() + FORM
    for _ in range(60):  # more than the service takes at a time
        connect(client, request).close()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: transcribe(client.with_options(max_retries=5), GOOD).text, range(8))) == {alone[0]}


def test_an_answer_may_take_as_long_as_the_recording_lasts():
    scope = {"headers": [(b"host", b"x")]}
    assert with_time(scope, 32_000) == scope  # Serve's own time
    assert with_time(scope, 25 << 20)["headers"][1:] == [(PROXY_HINTS[0], b"25690.0")]


def test_a_file_of_keys_says_which_line_is_wrong(tmp_path):
    (tmp_path / "keys").write_text(f"# ours\nann {'0' * 64}\nbob {'1' * 64} 4\n")
    assert [(caller.name, caller.max_requests) for caller in read_callers(tmp_path / "keys")] == [("ann", None), ("bob", 4)]
    for text, says in {f"ann {'0' * 63}": "line 1", "ann secret": "line 1", "": "no keys"}.items():
        (tmp_path / "keys").write_text(text)
        with pytest.raises(ValueError, match=says):
            read_callers(tmp_path / "keys")


def test_the_config_has_the_edge_and_listens_on_this_machine_only():
    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve/config.yaml").read_text()))
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8000)
    assert config.http_options.request_timeout_s > Arguments(**config.applications[0].args).timeout_s
    assert MIDDLEWARES in config.controller_options.runtime_env["env_vars"].values()


def test_the_config_for_clusters_listens_on_every_node_with_a_replica():
    cluster = yaml.safe_load((ROOT / "serve/cluster.yaml").read_text())
    config, here = ServeDeploySchema.model_validate(cluster), ServeDeploySchema.model_validate(CONFIG)
    assert (config.proxy_location, config.http_options.host) == ("EveryNode", "0.0.0.0")
    assert config.http_options.request_timeout_s == here.http_options.request_timeout_s
    assert config.applications[0].import_path == here.applications[0].import_path
    assert Arguments(**config.applications[0].args).device == "cuda"
    variables = cluster["controller_options"]["runtime_env"]["env_vars"]
    assert variables.items() <= CONFIG["controller_options"]["runtime_env"]["env_vars"].items()
