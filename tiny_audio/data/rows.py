"""What becomes of a planned row: a clip to train, a reject with its reason, or a row whose turn it is not."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.audio.clip import Clip
from tiny_audio.data.sources import source_of

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Reject:
    """A row that cannot be used.

    `reason` is one of `decode.REASONS`, "silent", "no_id", "no_label", "label_too_long", or UNREADABLE: then the row's file, or
    its row group, could not be read, and the ID is not known.
    """

    id: str
    reason: str
    path: str

    @property
    def source(self) -> str:
        return source_of(self.id)


@dataclass(frozen=True)
class LeftOut:
    """A row whose turn it is not in this epoch, by the weight of its source."""

    source: str


Row = Clip | Reject | LeftOut
