"""OpenAI's transcription API over HTTP, on Ray Serve: `serve run serve/config.yaml` from the repository's root.

A CPU `Ingress` reads multipart uploads, decodes them to int16 clips and answers with JSON or text; `Transcriber` replicas
hold the model. Every error has OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.
"""

import asyncio
import time
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field, field_validator
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from serve.transcriber import Transcriber
from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.storage import require_model

RETRY_AFTER = {"Retry-After": "2"}  # seconds: the time of a batch or two
UNAVAILABLE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)


class Arguments(BaseModel, extra="forbid"):
    """Lists the settings that `args` in a Serve config may hold."""

    model: str  # folder that `ASRModel.save_pretrained` wrote (relative to where Serve starts), its URL, or a hub id
    device: Literal["cpu", "cuda"] = "cpu"
    model_name: str = "tiny_audio"  # name that clients call the model by
    max_upload_mib: int = Field(25, ge=1)  # OpenAI's limit
    max_batch_size: int = Field(32, ge=1)  # clips that a replica transcribes together
    max_queued: int = Field(64, ge=1)  # clips waiting for a replica; any more are refused with 429
    max_replicas: int = Field(1, ge=1)
    num_threads: int = Field(1, ge=1)  # CPU threads of a Transcriber replica, and CPUs reserved for it
    timeout_s: float = Field(60.0, gt=0)  # longest wait for the model's answer, queueing included


class TranscriptionForm(BaseModel, extra="forbid"):
    """Holds OpenAI's form fields; `language` and `prompt` are accepted but change nothing, since this model takes neither."""

    file: UploadFile
    model: str
    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text"] = "json"
    temperature: float = 0.0
    stream: bool = False

    @field_validator("temperature", "stream")
    @classmethod
    def _is_off(cls, value: float | bool) -> float | bool:
        if value:
            raise ValueError("not supported; leave it out (decoding is greedy, and a transcript comes whole)")
        return value


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


class UploadLimit:
    """Refuses bodies over `max_bytes`, as ASGI middleware: by the announced length, or while reading one without it."""

    def __init__(self, app, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope, receive, send) -> None:
        announced_bytes = int(dict(scope.get("headers", ())).get(b"content-length", 0))
        received_bytes = 0

        async def receive_limited():
            nonlocal received_bytes
            message = await receive() if announced_bytes <= self.max_bytes else {}
            received_bytes += len(message.get("body", b""))
            if max(announced_bytes, received_bytes) > self.max_bytes:
                raise APIError(413, f"the upload is over {self.max_bytes >> 20} MiB", "file_too_large", "file")
            return message

        await self.app(scope, receive_limited, send)


@serve.deployment(ray_actor_options={"num_cpus": 1})
@serve.ingress()
class Ingress:
    """Answers HTTP requests; it holds no model, and decodes audio in threads, so that its event loop is never blocked."""

    def __init__(self, transcriber: DeploymentHandle, args: Arguments):
        self.transcriber = transcriber
        self.args = args
        self.max_duration_s: float | None = None
        self.card = {"id": args.model_name, "object": "model", "created": int(time.time()), "owned_by": "tiny_audio"}
        self.requests = metrics.Counter("tiny_audio_requests", "Transcriptions by outcome: ok or an error code.", ("outcome",))
        self.seconds = metrics.Counter("tiny_audio_seconds", "Seconds of audio transcribed.")

    def __serve_build_asgi_app__(self) -> FastAPI:
        errors = (HTTPException, RequestValidationError, AudioError, Exception)
        app = FastAPI(title="tiny_audio", exception_handlers=dict.fromkeys(errors, self._refuse))
        app.add_middleware(UploadLimit, max_bytes=self.args.max_upload_mib << 20)
        app.get("/healthz")(self.healthz)
        app.get("/v1/models")(self.list_models)
        app.get("/v1/models/{model:path}")(self.get_model)
        app.post("/v1/audio/transcriptions")(self.transcribe)
        return app

    async def _refuse(self, request: Request, error: Exception) -> JSONResponse:
        api_error = as_api_error(error)
        self.requests.inc(tags={"outcome": api_error.code})
        return api_error.response()

    async def _answer_of(self, response) -> Any:
        """Awaits the Transcriber's answer; turns Serve's own errors into ours, since Serve would answer in plain text."""
        try:
            async with asyncio.timeout(self.args.timeout_s):
                return await response
        except (BackPressureError, TimeoutError, *UNAVAILABLE) as error:
            if isinstance(error, TimeoutError):
                response.cancel()  # after any other error, this would raise it again
            raise as_api_error(error) from error

    async def _known_max_duration_s(self) -> float:
        if self.max_duration_s is None:
            self.max_duration_s = (await self._answer_of(self.transcriber.describe.remote()))["max_duration_s"]
        return self.max_duration_s

    async def healthz(self) -> dict:
        """Answers 200 once a model is loaded; replicas that fail later are replaced by Serve itself."""
        return {"status": "ok", "max_duration_s": await self._known_max_duration_s()}

    async def list_models(self) -> dict:
        """Lists the one model that is served, as OpenAI's API does."""
        return {"object": "list", "data": [self.card]}

    async def get_model(self, model: str) -> dict:
        """Describes the served model; any other name is a 404."""
        if model != self.args.model_name:
            raise APIError(404, f"no model {model!r} here; there is {self.args.model_name!r}", "model_not_found", "model")
        return self.card

    async def transcribe(self, form: Annotated[TranscriptionForm, Form()]) -> Response:
        """Decodes the uploaded file and answers with its transcript."""
        await self.get_model(form.model)
        max_duration_s = await self._known_max_duration_s()
        clip = await asyncio.to_thread(lambda: decode(form.file.file.read(), max_duration_s))
        transcript, duration_s = await self._answer_of(self.transcriber.remote(clip)), len(clip) / SAMPLE_RATE
        self.requests.inc(tags={"outcome": "ok"})
        self.seconds.inc(duration_s)
        if form.response_format == "text":
            return PlainTextResponse(transcript["text"])
        body = {name: transcript[name] for name in ("text", "complete", "looped")}
        return JSONResponse({**body, "usage": {"type": "duration", "seconds": duration_s}})


def build(args: Arguments) -> serve.Application:
    """Builds the application that Serve runs, the ingress bound to the model's replicas; `args` is the config's."""
    in_flight = 2 * args.max_batch_size  # clips in a replica: those that wait there join as soon as another clip is done
    transcriber = Transcriber.options(
        ray_actor_options={"num_cpus": args.num_threads, "num_gpus": int(args.device == "cuda")},
        max_ongoing_requests=in_flight,
        max_queued_requests=args.max_queued,
        autoscaling_config={"max_replicas": args.max_replicas, "target_ongoing_requests": args.max_batch_size},
    ).bind(require_model(args.model), args.device, args.num_threads, args.max_batch_size)
    # The ingress admits more clips than the replicas and their queue hold, so that it refuses the rest itself, in OpenAI's shape.
    return Ingress.options(max_ongoing_requests=args.max_replicas * in_flight + args.max_queued + 32).bind(transcriber, args)
