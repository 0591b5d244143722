"""What /readyz makes of what Serve's controller says."""

import asyncio
import time

import pytest
from ray import serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus
from starlette.testclient import TestClient

from tiny_audio.monitoring import metrics
from tiny_audio.monitoring.recorder import Recorder
from tiny_audio.serving import readiness
from tiny_audio.serving.metrics import AnswerMonitor, outcome_of
from tiny_audio.serving.readiness import Readiness, missing_deployments


def status_of(**deployments) -> ServeStatus:
    """The status of an application: of each deployment its status and how many of its replicas run."""
    overviews = {
        name: DeploymentStatusOverview(status, "UNSPECIFIED", {"RUNNING": running, "STARTING": 1}, "")
        for name, (status, running) in deployments.items()
    }
    return ServeStatus(applications={"tiny_audio": ApplicationStatusOverview("RUNNING", "", 0.0, overviews)})


@pytest.mark.parametrize(
    ("status", "missing"),
    [
        (ServeStatus(), ["an application"]),
        (status_of(), ["an application"]),
        (status_of(Ingress=("HEALTHY", 1), Transcriber=("UPDATING", 0)), ["tiny_audio.Transcriber"]),
        (status_of(Ingress=("HEALTHY", 1), Transcriber=("UPDATING", 1)), []),  # a rolling update
        (status_of(Ingress=("HEALTHY", 1), Transcriber=("HEALTHY", 0)), []),  # scaled to none: a request starts one
    ],
)
def test_a_service_is_ready_when_all_its_parts_can_answer(status, missing):
    assert missing_deployments(status) == missing


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_readiness_is_answered_without_the_application_and_survives_the_head(monkeypatch):
    looks = []

    def look():
        looks.append(time.monotonic())
        if len(looks) > 1:
            raise RuntimeError("the head is gone")
        return status_of(Ingress=("HEALTHY", 1), Transcriber=("HEALTHY", 1))

    monkeypatch.setattr(serve, "status", look)
    monkeypatch.setattr(readiness, "ASK_EVERY_S", 0.2)
    client = TestClient(Readiness(application))
    assert [client.get("/readyz").status_code for _ in range(3)] == [200] * 3
    assert len(looks) == 1
    time.sleep(0.3)
    assert client.get("/readyz").json() == {"status": "ready"}
    assert len(looks) == 2
    assert client.get("/v1/models").status_code == 418


def test_a_controller_that_does_not_answer_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(serve, "status", lambda: time.sleep(1.0))
    monkeypatch.setattr(readiness, "ANSWER_S", 0.1)
    started, ready = time.monotonic(), Readiness(application)
    asyncio.run(asyncio.wait_for(ready._look(), 5))
    assert ready.missing == ["an application"]
    assert time.monotonic() - started < 5


def test_answers_are_counted_and_refusals_logged_with_their_id_and_reason(monkeypatch, caplog):
    async def refusing(scope, receive, send):
        headers = [(b"x-request-id", b"id-1")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error": {"code": "file_too_large"}}'})

    counted = []
    monkeypatch.setattr(Recorder, "add", lambda self, metric, value, **labels: counted.append((metric, value, labels)))
    monkeypatch.setattr(Recorder, "observe", lambda self, metric, value, **labels: counted.append((metric, value)))
    assert TestClient(AnswerMonitor(refusing)).post("/v1/audio%0Atranscriptions?key=SECRET", content=b"AUDIO").status_code == 413
    assert counted[0] == (metrics.REQUESTS, 1, {"status": "413", "outcome": "file_too_large"})
    assert counted[1][0] == metrics.REQUEST_S
    (line,) = caplog.messages
    assert line.startswith("request id-1: POST '/v1/audio")
    assert "refused: 413 file_too_large after 0." in line
    assert not [secret for secret in ("SECRET", "AUDIO", "\n") if secret in line]


@pytest.mark.parametrize(
    ("answer", "status", "outcome"),
    [({"type": "websocket.accept"}, "101", "ok"), ({"type": "websocket.http.response.start", "status": 429}, "429", "429")],
)
def test_realtime_sessions_are_counted_as_answers(monkeypatch, answer, status, outcome):
    async def answering(scope, receive, send):
        await send(answer)

    async def send(message: dict) -> None:
        pass

    counted = []
    monkeypatch.setattr(Recorder, "add", lambda self, metric, value, **labels: counted.append((metric, labels)))
    asyncio.run(AnswerMonitor(answering)({"type": "websocket", "path": "/v1/realtime"}, None, send))
    assert counted == [(metrics.REQUESTS, {"status": status, "outcome": outcome})]


def test_outcomes_are_the_codes_of_errors():
    assert outcome_of(200, b"") == "ok"
    assert outcome_of(413, b'{"error": {"code": "file_too_large"}}') == "file_too_large"
    assert [outcome_of(status, b"not JSON") for status in (404, 499, 500)] == ["404", "client_gone", "internal_error"]
