"""What Serve's proxies put around their application: Serve calls `middlewares` where its environment names it."""

import uvicorn.config
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from tiny_audio.ray_names import refuse_shared_ports
from tiny_audio.serving.arguments import EdgeSettings
from tiny_audio.serving.edge import Edge
from tiny_audio.serving.further_proxies import FurtherProxies
from tiny_audio.serving.metrics import AnswerMonitor
from tiny_audio.serving.page.document import Page
from tiny_audio.serving.readiness import Readiness


def middlewares() -> list[Middleware]:
    """Prepares this process, which is Serve's own proxy of a node, and returns its middlewares; the last is the outermost."""
    sockets = refuse_shared_ports()
    settings = EdgeSettings.from_environment()
    further = Middleware(FurtherProxies, number=settings.num_proxies - 1, sockets=sockets)
    return [*[further] * (settings.num_proxies > 1), *_own_middlewares(settings)]


def middlewares_of_further() -> list[Middleware]:
    """Prepares this process, which is a further proxy that `FurtherProxies` started, and returns its middlewares."""
    return _own_middlewares(EdgeSettings.from_environment())


def _own_middlewares(settings: EdgeSettings) -> list[Middleware]:
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "tiny_audio.serving.protocol:Protocol"
    uvicorn.config.WS_PROTOCOLS["auto"] = "tiny_audio.serving.protocol:SocketProtocol"
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-ID", "Retry-After"],
    )
    own = [Middleware(Page), Middleware(Readiness), Middleware(Edge, settings=settings)]
    return [*own, *[cors] * bool(settings.origins), Middleware(AnswerMonitor)]
