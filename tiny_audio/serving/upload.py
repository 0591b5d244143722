"""The limits of an upload."""

from tiny_audio.serving.errors import APIError


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
