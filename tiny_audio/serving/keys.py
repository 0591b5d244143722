"""API keys: who may call, and how much at a time. Only hashes of the keys are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tiny_audio.config import ConfigError, require
from tiny_audio.serving.errors import APIError, too_many_requests
from tiny_audio.storage import said_in_one_line

LINE = re.compile(r"(\S+)\s+([0-9a-fA-F]{64})(?:\s+([1-9]\d*))?\s*")
BEARER = re.compile(rb"bearer\s+(.+)", re.IGNORECASE)
SUBPROTOCOL = re.compile(rb"openai-insecure-api-key\.([^,\s]+)")  # how a browser names its key on a WebSocket


@dataclass
class Caller:
    """Holds a key's hash, and what its owner may do."""

    name: str
    sha256: bytes
    max_requests: int | None = None  # at a time, for each proxy; as many realtime sessions besides
    in_progress: Counter[str] = field(default_factory=Counter)

    def request(self) -> AbstractContextManager[None]:
        """Counts a request of this caller for as long as the context lasts.

        Raises:
            APIError: the caller has as many requests in flight as its key allows.
        """
        return self._counted("requests")

    def session(self) -> AbstractContextManager[None]:
        """Counts a realtime session, which takes no place of a request; raises as `request` does."""
        return self._counted("realtime sessions")

    @contextmanager
    def _counted(self, kind: str) -> Iterator[None]:
        if self.max_requests is not None and self.in_progress[kind] >= self.max_requests:
            raise too_many_requests(f"this key allows {self.max_requests} {kind} at a time")
        self.in_progress[kind] += 1
        try:
            yield
        finally:
            self.in_progress[kind] -= 1


def read_callers(path: Path) -> list[Caller]:
    """Reads a file of keys: in each line a name, the SHA-256 of a key in hex, and perhaps the most requests at a time.

    Raises:
        ConfigError: the file cannot be read, has no keys, or has a line of another form.
    """
    with said_in_one_line(path):
        lines = path.read_text().splitlines()
    callers = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        require(match is not None, f"{path}: line {number} is not NAME SHA256 [MAX_REQUESTS]")
        name, sha256, limit = match.groups()
        callers.append(Caller(name, bytes.fromhex(sha256), int(limit) if limit else None))
    require(bool(callers), f"{path}: has no keys, so nobody could call")
    return callers


class Keys:
    """Knows the callers that a file of keys lists, and reads the file again when it changes. Without one, everybody may call."""

    def __init__(self, path: str | None):
        self.path = Path(path) if path else None
        self.changed_at = 0.0
        self.callers: list[Caller] = []
        if self.path:
            self._refresh()

    def _refresh(self) -> None:
        with said_in_one_line(self.path):
            changed_at = self.path.stat().st_mtime
        if changed_at != self.changed_at:
            self.callers, self.changed_at = read_callers(self.path), changed_at

    def caller(self, headers: dict[bytes, bytes]) -> Caller:
        """Returns whose key a request has. Its hash is compared with all others, in constant time.

        Raises:
            APIError: the request has no key, or one that is not in the file.
        """
        if not self.path:
            return Caller("anybody", b"")
        with suppress(ConfigError):  # a file that is being replaced leaves the keys that it had
            self._refresh()
        sha256 = hashlib.sha256(presented_key(headers)).digest()
        matching = [caller for caller in self.callers if hmac.compare_digest(caller.sha256, sha256)]
        if not matching:
            raise APIError(401, "no valid API key: send one as Authorization: Bearer KEY", "invalid_api_key")
        return matching[0]


def presented_key(headers: dict[bytes, bytes]) -> bytes:
    """Returns the key that a request presents, or b""."""
    bearer = BEARER.fullmatch(headers.get(b"authorization", b"").strip())
    offered = bearer or SUBPROTOCOL.search(headers.get(b"sec-websocket-protocol", b""))
    return offered[1] if offered else b""
