"""Which error a client sees for what went wrong within the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from starlette.exceptions import HTTPException

from tiny_audio.audio.decode import AudioError
from tiny_audio.serving.errors import APIError, too_many_requests, unavailable

UNAVAILABLE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
# What the ingress answers; all else is also raised on to Serve, which logs it.
EXPECTED = (HTTPException, RequestValidationError, AudioError)


@contextmanager
def said_as_api_error() -> Iterator[None]:
    """Turns what Serve raises for a model that is busy, slow or away into an error of ours; Serve would answer in plain text."""
    try:
        yield
    except (BackPressureError, TimeoutError, *UNAVAILABLE) as error:
        raise as_api_error(error) from error


def as_api_error(error: Exception) -> APIError:
    """Turns any error into the one that the client sees."""
    match error:
        case APIError():
            return error
        case AudioError():
            return APIError(400, str(error), error.reason, "file")
        case RequestValidationError():
            first = error.errors()[0]
            param, message = str(first["loc"][-1]), first["msg"].removeprefix("Value error, ")
            return APIError(400, f"{param}: {message}", "invalid_value", param)
        case HTTPException():
            return APIError(error.status_code, error.detail, HTTPStatus(error.status_code).name.lower(), headers=error.headers)
        case BackPressureError():
            return too_many_requests("too many requests are waiting")
        case TimeoutError():
            return APIError(504, "the model took too long to answer", "timeout")
        case _ if isinstance(error, UNAVAILABLE):
            return unavailable("the model is restarting")
    return APIError(500, "internal error; the server's log has it", "internal_error")
