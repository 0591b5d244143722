"""The routes: a CPU deployment that answers HTTP requests, and asks the model's replicas."""

import asyncio
import os
import time
from collections.abc import AsyncIterator

import numpy as np
from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response, StreamingResponse

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.decode import decode
from tiny_audio.config import require
from tiny_audio.ray_names import PROXY_CALLBACK
from tiny_audio.serving.answers import ANSWERS, DONE, Segment, Transcription, delta_event, done_event, event, with_heartbeats
from tiny_audio.serving.arguments import MIDDLEWARES, Arguments
from tiny_audio.serving.errors import APIError
from tiny_audio.serving.failures import EXPECTED, as_api_error
from tiny_audio.serving.form import MAX_FIELD_BYTES, TranscriptionForm, form_schema, read_form
from tiny_audio.serving.model_calls import ModelCalls

UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # for the proxies that stand between
FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}}}


@serve.deployment(ray_actor_options={"num_cpus": 1})
@serve.ingress()
class Ingress:
    """Answers HTTP requests; it holds no model, and decodes audio in threads, so that its event loop is never blocked.

    The proxies' edge stands before it: it knows the caller, and has the whole body of each request.
    """

    def __init__(self, transcriber: DeploymentHandle, args: Arguments):
        missing = f"Serve was started without its edge; start it with {PROXY_CALLBACK}={MIDDLEWARES}, as serve/config.yaml does"
        require(os.environ.get(PROXY_CALLBACK) == MIDDLEWARES, missing)
        self.model, self.args = ModelCalls(transcriber, args.timeout_s), args
        self.max_duration_s: float | None = None
        created = int(time.time())
        self.cards = {
            name: {"id": name, "object": "model", "created": created, "owned_by": "tiny_audio"}
            for name in (args.model_name, *args.model_aliases, *args.models)
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI(
            title="tiny_audio",
            description="OpenAI's transcription API",
            docs_url="/docs" if self.args.docs else None,
            openapi_url="/openapi.json" if self.args.docs else None,
            redoc_url=None,
            redirect_slashes=False,
            exception_handlers=dict.fromkeys((*EXPECTED, Exception), self._refuse),
        )
        app.get("/healthz")(self.healthz)
        app.get("/v1/models")(self.list_models)
        app.get("/v1/models/{model:path}")(self.get_model)
        app.post("/v1/audio/transcriptions", openapi_extra=FORM)(self.transcribe)
        app.post("/v1/audio/translations")(self.translate)
        return app

    async def _refuse(self, request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def _known_max_duration_s(self) -> float:
        if self.max_duration_s is None:
            self.max_duration_s = await self.model.max_duration_s()
        return self.max_duration_s

    async def healthz(self) -> dict:
        """Answers 200 once a model is loaded; replicas that fail later are replaced by Serve itself."""
        return {"status": "ok", "max_duration_s": await self._known_max_duration_s()}

    async def list_models(self) -> dict:
        """Lists the models that are served, under each of their names, as OpenAI's API does."""
        return {"object": "list", "data": list(self.cards.values())}

    async def get_model(self, model: str) -> dict:
        """Describes a served model; any other name is a 404."""
        if model not in self.cards:
            names = ", ".join([self.args.model_name, *self.args.models])
            raise APIError(404, f"no model {model!r} here; there is {names}", "model_not_found", "model")
        return self.cards[model]

    async def translate(self) -> Response:
        """Refuses OpenAI's other audio endpoint."""
        raise APIError(400, "this model transcribes, and does not translate; use /v1/audio/transcriptions", "not_supported")

    async def transcribe(self, request: Request) -> Response:
        """Transcribes an audio file: OpenAI's endpoint, with its form."""
        async with request.form(max_fields=100, max_part_size=MAX_FIELD_BYTES) as parts:
            form = read_form(parts)
            await self.get_model(form.model)
            language = self._language(form)
            max_duration_s = await self._known_max_duration_s()
            clip = await asyncio.to_thread(lambda: decode(form.file.file.read(), max_duration_s))
        model = form.model if form.model in self.args.models else None
        if form.stream:
            pieces = self.model.pieces(clip, model)
            first = await anext(pieces)  # what fails before it still has a status
            return StreamingResponse(
                with_heartbeats(self._events(clip, language, first, pieces)), media_type="text/event-stream", headers=UNBUFFERED
            )
        transcription = as_transcription(clip, language, await self.model.transcript(clip, model))
        return ANSWERS[form.response_format](transcription)

    def _language(self, form: TranscriptionForm) -> str:
        """Returns the name of the language that is asked for, or of the model's first."""
        known = self.args.languages
        for param, asked in [("language", form.language), *(("languages", name) for name in form.languages)]:
            if asked and asked.lower() not in {*known, *known.values()}:
                raise APIError(400, f"{param}: this model hears {', '.join(known)}, not {asked!r}", "invalid_value", param)
        asked = (form.language or next(iter(known))).lower()
        return known.get(asked, asked)

    async def _events(self, clip: np.ndarray, language: str, first: str | dict, rest: AsyncIterator) -> AsyncIterator[str]:
        """Writes the events of a transcript: its pieces, then one that says that it is done; or one with an error."""
        try:
            piece = first
            while isinstance(piece, str):
                yield delta_event(piece)
                piece = await anext(rest)
            yield done_event(as_transcription(clip, language, piece))
            yield DONE
        except Exception as error:
            yield event(as_api_error(error).body)
        finally:
            await rest.aclose()


def as_transcription(clip: np.ndarray, language: str, transcript: dict) -> Transcription:
    """Puts the transcript of a whole recording together with what is known of it."""
    duration_s = len(clip) / SAMPLE_RATE
    return Transcription([Segment(0.0, duration_s, transcript)], duration_s, language)
