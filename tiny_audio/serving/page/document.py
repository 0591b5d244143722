"""The page at `/`: one document with its style and script inside, which nothing but itself may run or load."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.responses import Response

from tiny_audio.serving.errors import APIError
from tiny_audio.serving.paths import PAGE_PATH, path_of

FOLDER = Path(__file__).parent
POLICY = {
    "default-src": "'none'",
    "connect-src": "'self'",  # the service
    "media-src": "blob:",  # the file that was chosen
    "img-src": "data:",  # the icon
    "form-action": "'none'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",  # no text of a transcript can become markup
}


def page() -> Response:
    """Returns the page, whose Content-Security-Policy names its style and script by their hashes."""
    html, policy = (FOLDER / "page.html").read_text(), dict(POLICY)
    for tag, name in (("style", "page.css"), ("script", "page.js")):
        text = (FOLDER / name).read_text()
        html = html.replace(f"<{tag}></{tag}>", f"<{tag}>{text}</{tag}>")
        policy[f"{tag}-src"] = f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {source}" for name, source in policy.items()),
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return Response(html, media_type="text/html", headers=headers)


class Page:
    """Answers PAGE_PATH with the page, as ASGI middleware of a proxy, and passes everything else on."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app, self.page = app, page()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or path_of(scope) != PAGE_PATH:
            await self.app(scope, receive, send)
        elif scope["method"] != "GET":
            raise APIError(405, "the page can only be read", "method_not_allowed", headers={"Allow": "GET, HEAD"})
        else:
            await self.page(scope, receive, send)
