"""Whether the service can answer, told by Serve's proxies themselves: asking takes no place in any queue of requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from ray import serve
from ray.serve.schema import ServeStatus
from starlette.responses import JSONResponse

from tiny_audio.config import one_line
from tiny_audio.serving.paths import READY_PATH, path_of

ASK_EVERY_S = 1.0  # how often Serve's controller is asked at most
ANSWER_S = 2.0  # how long it may take, until what it said before is said again
logger = logging.getLogger("ray.serve")


def missing_deployments(status: ServeStatus) -> list[str]:
    """Names the deployments that cannot answer: without a replica that runs, unless they are scaled to none on purpose.

    A replica of the model runs once it has transcribed a clip. Without an application, nothing can answer.
    """
    missing = [
        f"{app}.{name}"
        for app, overview in status.applications.items()
        for name, deployment in overview.deployments.items()
        if not deployment.replica_states.get("RUNNING") and deployment.status != "HEALTHY"
    ]
    return missing if any(overview.deployments for overview in status.applications.values()) else ["an application"]


class Readiness:
    """Answers READY_PATH with 200 or 503, as ASGI middleware of a proxy, and passes everything else on."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app
        self.missing = ["an application"]  # as of the last look
        self.looked_at = -ASK_EVERY_S
        self.looking = asyncio.Lock()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or path_of(scope) != READY_PATH:
            await self.app(scope, receive, send)
            return
        await self._look()
        body = {"status": "waiting", "for": self.missing} if self.missing else {"status": "ready"}
        await JSONResponse(body, 503 if self.missing else 200)(scope, receive, send)

    async def _look(self) -> None:
        """Asks the controller, unless it was asked just now; where it does not answer, what was known before stays."""
        async with self.looking:
            if time.monotonic() - self.looked_at < ASK_EVERY_S:
                return
            try:
                status = await asyncio.wait_for(asyncio.to_thread(serve.status), ANSWER_S)
                self.missing = missing_deployments(status)
            except Exception as error:  # the head may be lost for a while: the replicas answer meanwhile
                logger.warning("Serve's controller does not say which deployments run: %s", one_line(error))
            self.looked_at = time.monotonic()
