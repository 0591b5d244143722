"""How a body gets from the edge to the application."""

import asyncio

import pytest

from tiny_audio.serving.body import BODY, Detach, attached
from tiny_audio.serving.upload import SMALL_BYTES


@pytest.mark.parametrize("piece", [b"ab", b"x" * SMALL_BYTES])
def test_the_application_gets_the_body_as_it_came_and_then_waits_for_the_client(piece):
    """A small one is spared a call back to the proxy: it is in the scope, and nothing comes behind it."""
    seen, behind = [], []

    async def gone() -> dict:
        return {"type": "http.disconnect"}

    async def application(scope, receive, send) -> None:
        assert BODY not in scope
        while (message := await receive())["type"] == "http.request":
            seen.append(message["body"])

    async def request() -> None:
        scope, replay = attached({"type": "http", "headers": []}, [piece, b"", piece], gone)

        async def receive() -> dict:
            behind.append(await replay.receive())
            return behind[-1]

        await Detach(application)(scope, receive, None)
        assert replay.is_gone

    asyncio.run(request())
    assert b"".join(seen) == piece * 2
    assert len(behind) == (1 if len(piece) < SMALL_BYTES else 4)
