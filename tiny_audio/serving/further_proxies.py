"""Several proxies behind the one port of a node.

Serve runs one proxy on a node. It is one process of Python, and passes on fewer requests than four GPUs transcribe. So it starts
further proxies, which listen at the same port; Linux deals out the connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable

from ray.actor import ActorHandle

from tiny_audio.config import one_line
from tiny_audio.ray_names import PROXY_CALLBACK, counted_as_busy, is_draining, start_proxy
from tiny_audio.serving.arguments import MIDDLEWARES_OF_FURTHER

LOOK_EVERY_S = 1.0  # how often Serve's draining of its own proxy is looked for
logger = logging.getLogger("ray.serve")


class FurtherProxies:
    """Starts further proxies, as the innermost ASGI middleware of Serve's own. They end with it; one that dies is started again.

    Args:
        app: Serve's application.
        number: how many to start.
        sockets: this process's listening socket, once it has one.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], number: int, sockets: list[socket.socket]):
        self.app = app
        self.task = asyncio.get_running_loop().create_task(self._follow(number, sockets))

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        await self.app(scope, receive, send)

    async def _follow(self, number: int, sockets: list[socket.socket]) -> None:
        try:
            others = await self._start(number, sockets)
            while True:
                while not is_draining(self.app):
                    await asyncio.sleep(LOOK_EVERY_S)
                await self._drain(others)
        except Exception:
            logger.exception("the further proxies end: what follows them failed")

    async def _start(self, number: int, sockets: list[socket.socket]) -> list[ActorHandle]:
        for own in sockets:  # it got its port alone, so no stranger has it, and may share it now
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        variables = {PROXY_CALLBACK: MIDDLEWARES_OF_FURTHER}
        others = await asyncio.to_thread(lambda: [start_proxy(index, variables) for index in range(1, number + 1)])
        for outcome in await _outcomes(other.ready.remote() for other in others):
            if isinstance(outcome, Exception):
                logger.error("a further proxy did not start: %s", one_line(outcome))
        return others

    async def _drain(self, others: list[ActorHandle]) -> None:
        """Drains the others while Serve drains this proxy, as of a node that has no replica any more.

        Serve ends it, and them with it, when it has no request left; until they have none either, it counts as having one.
        """
        await _outcomes(other.update_draining.remote(True) for other in others)
        with counted_as_busy(self.app):
            while is_draining(self.app):
                if all(await _outcomes(other.is_drained.remote() for other in others)):
                    break  # one that died has no request either
                await asyncio.sleep(LOOK_EVERY_S)
        while is_draining(self.app):
            await asyncio.sleep(LOOK_EVERY_S)
        await _outcomes(other.update_draining.remote(False) for other in others)


async def _outcomes(calls: Iterable[Awaitable]) -> list:
    """Waits for calls; what they return, or raise, as those of a proxy that dies."""
    return await asyncio.gather(*calls, return_exceptions=True)
