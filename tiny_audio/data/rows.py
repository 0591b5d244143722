"""What becomes of a planned row: a clip to train, a reject with its reason, or a row that its epoch leaves out."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.audio.clip import Clip
from tiny_audio.data.sources import source_of

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Reject:
    """A row that cannot be used.

    Its `reason` is one of `decode.REASONS`, "silent", "no_id", "no_label", "label_too_long" or UNREADABLE. The last means that
    the row's file, or its row group, could not be read; then the ID is unknown.
    """

    id: str
    reason: str
    path: str

    @property
    def source(self) -> str:
        return source_of(self.id)


@dataclass(frozen=True)
class LeftOut:
    """A row that this epoch does not take, by the weight of its source."""

    source: str


Row = Clip | Reject | LeftOut
