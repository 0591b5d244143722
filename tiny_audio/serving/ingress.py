"""The routes: a CPU deployment that answers HTTP requests, and asks the model's replicas."""

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response, StreamingResponse

from tiny_audio.config import require
from tiny_audio.inference.engine import SWITCH_S
from tiny_audio.ray_names import PROXY_CALLBACK, spare_calls_to_proxies
from tiny_audio.serving.answers import ANSWERS, Transcription, event, events_of, with_heartbeats
from tiny_audio.serving.arguments import MIDDLEWARES, Arguments
from tiny_audio.serving.body import BODY, Detach
from tiny_audio.serving.errors import APIError
from tiny_audio.serving.failures import EXPECTED, as_api_error
from tiny_audio.serving.form import MAX_FIELD_BYTES, TranscriptionForm, form_schema, read_form
from tiny_audio.serving.model_calls import ModelCalls
from tiny_audio.serving.offer import Offer
from tiny_audio.serving.realtime.socket import Realtime
from tiny_audio.serving.recordings import Recordings

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
        spare_calls_to_proxies(BODY)
        sys.setswitchinterval(SWITCH_S)  # threads that decode keep Python from the event loop
        self.model, self.args = ModelCalls(transcriber, args.timeout_s), args
        self.offer = Offer([args.model_name, *args.model_aliases], list(args.models), args.languages)
        self.recordings = Recordings(self.model, args)
        created = int(time.time())
        self.cards = {
            name: {"id": name, "object": "model", "created": created, "owned_by": "tiny_audio"} for name in self.offer.model_names
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
        app.add_middleware(Detach)
        app.get("/healthz")(self.healthz)
        app.get("/v1/models")(self.list_models)
        app.get("/v1/models/{model:path}")(self.get_model)
        app.post("/v1/audio/transcriptions", openapi_extra=FORM)(self.transcribe)
        app.post("/v1/audio/translations")(self.translate)
        app.router.add_websocket_route("/v1/realtime", Realtime(self.model, self.offer, self.args))
        return app

    async def _refuse(self, request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def healthz(self) -> dict:
        """Answers 200 once a model is loaded; replicas that fail later are replaced by Serve itself."""
        window_s = await self.model.max_duration_s()
        return {"status": "ok", "max_duration_s": self.args.max_duration_s, "window_s": window_s}

    async def list_models(self) -> dict:
        """Lists the models that are served, under each of their names, as OpenAI's API does."""
        return {"object": "list", "data": list(self.cards.values())}

    async def get_model(self, model: str) -> dict:
        """Describes a served model; any other name is a 404."""
        self.offer.require_model(model)
        return self.cards[model]

    async def translate(self) -> Response:
        """Refuses OpenAI's other audio endpoint."""
        raise APIError(400, "this model transcribes, and does not translate; use /v1/audio/transcriptions", "not_supported")

    async def transcribe(self, request: Request) -> Response:
        """Transcribes an audio file: OpenAI's endpoint, with its form."""
        async with AsyncExitStack() as held:
            parts = await held.enter_async_context(request.form(max_fields=100, max_part_size=MAX_FIELD_BYTES))
            form = read_form(parts)
            await self.get_model(form.model)
            language = self._language(form)
            model = self.offer.further_model(form.model)
            with_words = form.wants_words((await self.model.description())["word_times"])
            cut = await held.enter_async_context(self.recordings.cut(form.file.file, form.chunking_strategy))
            transcription = Transcription([], cut.duration_s, language, bool(form.include), with_words)
            if form.stream:
                with_segments = form.response_format == "verbose_json"
                events = with_heartbeats(events_of(self.recordings.pieces(cut, model, with_words), transcription, with_segments))
                first = await anext(events)  # what fails before it still has a status
                sent = _sent(first, events, held.pop_all())
                return StreamingResponse(sent, media_type="text/event-stream", headers=UNBUFFERED)
            async for segment in self.recordings.segments(cut, model, with_words):
                transcription.segments.append(segment)
        return ANSWERS[form.response_format](transcription)

    def _language(self, form: TranscriptionForm) -> str:
        """Returns the name of the language that is asked for, or of the model's first."""
        for language in form.languages:
            self.offer.language(language, "languages")
        return self.offer.language(form.language)


async def _sent(first: str, rest: AsyncIterator[str], held: AsyncExitStack) -> AsyncIterator[str]:
    """Yields the events of a stream that has begun; what fails from now on is an event. Frees what is held for it."""
    async with held, aclosing(rest):
        try:
            yield first
            async for later in rest:
                yield later
        except Exception as error:
            yield event(as_api_error(error).body)
