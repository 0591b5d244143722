"""Lays buffers end to end as one file without joining them: a repaired header before hours of sound."""

from __future__ import annotations

import io
from itertools import accumulate

Buffer = bytes | bytearray | memoryview


class Pieces(io.RawIOBase):
    """Reads several buffers as one file."""

    def __init__(self, *buffers: Buffer):
        self.buffers = [memoryview(buffer).cast("B") for buffer in buffers]
        self.ends = list(accumulate(map(len, self.buffers)))
        self.position = 0

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def readable(self) -> bool:
        """Says that the file can be read."""
        return True

    def seekable(self) -> bool:
        """Says that the file can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to `offset` bytes from the start, the present place or the end; returns the new place."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self)}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def tell(self) -> int:
        """Returns the present place, in bytes from the start."""
        return self.position

    def readinto(self, target) -> int:
        """Fills the target as far as there are bytes; returns how many it was given, 0 at the end."""
        target, filled = memoryview(target).cast("B"), 0
        for buffer, end in zip(self.buffers, self.ends, strict=True):
            if self.position < end:
                found = buffer[self.position - (end - len(buffer)) :][: len(target) - filled]
                target[filled : filled + len(found)] = found
                self.position, filled = self.position + len(found), filled + len(found)
        return filled
