"""The errors that clients see. Each has OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from starlette.exceptions import HTTPException

from tiny_audio.audio.decode import AudioError

RETRY_AFTER = {"Retry-After": "2"}  # seconds: the time of a batch or two
UNAVAILABLE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)


class APIError(HTTPException):
    """Represents an error as a client sees it, in OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None, headers: dict | None = None):
        super().__init__(status, message, headers)
        self.code = code
        self.param = param

    def response(self) -> JSONResponse:
        """Builds the HTTP response that carries the error."""
        error_type = "invalid_request_error" if self.status_code < 500 else "server_error"
        body = {"message": self.detail, "type": error_type, "param": self.param, "code": self.code}
        return JSONResponse({"error": body}, self.status_code, self.headers)


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
            return APIError(429, "too many requests are waiting; try again soon", "rate_limit_exceeded", headers=RETRY_AFTER)
        case TimeoutError():
            return APIError(504, "the model took too long to answer", "timeout")
        case _ if isinstance(error, UNAVAILABLE):
            return APIError(503, "the model is restarting; try again soon", "unavailable", headers=RETRY_AFTER)
    return APIError(500, "internal error; the server's log has it", "internal_error")
