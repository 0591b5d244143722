"""The routes: a CPU deployment that answers HTTP requests, and asks the model's replicas."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.serving.answers import answer
from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.errors import UNAVAILABLE, APIError, as_api_error
from tiny_audio.serving.form import TranscriptionForm
from tiny_audio.serving.upload import UploadLimit


@serve.deployment(ray_actor_options={"num_cpus": 1})
@serve.ingress()
class Ingress:
    """Answers HTTP requests; it holds no model, and decodes audio in threads, so that its event loop is never blocked."""

    def __init__(self, transcriber: DeploymentHandle, args: Arguments):
        self.transcriber = transcriber
        self.args = args
        self.max_duration_s: float | None = None
        self.card = {"id": args.model_name, "object": "model", "created": int(time.time()), "owned_by": "tiny_audio"}

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
        return as_api_error(error).response()

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
        return answer(transcript, duration_s, form.response_format)
