"""What Serve's proxies put around their application: Serve calls `middlewares` where its environment names it."""

from starlette.middleware import Middleware

from tiny_audio.serving.metrics import AnswerMonitor
from tiny_audio.serving.readiness import Readiness


def middlewares() -> list[Middleware]:
    """Returns the proxies' middlewares; the last is the outermost."""
    return [Middleware(AnswerMonitor), Middleware(Readiness)]
