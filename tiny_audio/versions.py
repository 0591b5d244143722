"""Versions of the file formats that outlive a start: checkpoints, plans, ledgers and exported models.

Each file holds the version of its format. A change that old code would misread makes a new one.
"""

from __future__ import annotations

from tiny_audio.config import require

FORMAT_VERSION = "format_version"  # the key in a file, or in its metadata


def require_version(file: object, version: int | str | bytes | None, newest: int) -> None:
    """Checks the version that a file says it has; one that says none is of version 1, as the first files were written.

    Args:
        file: its path, for the message.
        newest: the version of the format that this code writes; it reads all from 1 on.

    Raises:
        ConfigError: the version is another.
    """
    text = version.decode(errors="replace") if isinstance(version, bytes) else str(1 if version is None else version)
    is_known = text.isascii() and text.isdigit() and 1 <= int(text) <= newest
    readable = "version 1" if newest == 1 else f"versions 1 to {newest}"
    remedy = "update tiny_audio to the version that wrote it"
    require(is_known, f"{file}: has format version {text}, and this tiny_audio reads {readable}; {remedy}")
