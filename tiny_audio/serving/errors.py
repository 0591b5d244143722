"""The errors that clients see. Each has OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

RETRY_AFTER = {"Retry-After": "2"}  # seconds: the time of a batch or two


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict:
    """Returns OpenAI's body for an error."""
    error_type = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


class APIError(HTTPException):
    """Represents an error as a client sees it, in OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None, headers: dict | None = None):
        super().__init__(status, message, headers)
        self.code = code
        self.param = param

    @property
    def body(self) -> dict:
        """The JSON that says what is wrong."""
        return error_body(self.status_code, self.detail, self.code, self.param)

    def response(self) -> JSONResponse:
        """Builds the HTTP response that carries the error."""
        return JSONResponse(self.body, self.status_code, self.headers)


def too_many_requests(message: str) -> APIError:
    """Returns the refusal of a request that would wait behind too many others."""
    return APIError(429, f"{message}; try again soon", "rate_limit_exceeded", headers=RETRY_AFTER)


def unavailable(message: str) -> APIError:
    """Returns the refusal of a request that nobody can answer at the moment."""
    return APIError(503, f"{message}; try again soon", "unavailable", headers=RETRY_AFTER)
