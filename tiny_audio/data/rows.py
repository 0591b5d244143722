"""What becomes of a planned row: a clip to train, a reject with its reason, or a row that its epoch leaves out."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.audio.clip import Clip

UNREADABLE = "unreadable"
NO_FILE = "no_file"


@dataclass(frozen=True)
class Reject:
    """A row that cannot be used.

    Its `reason` is one of `decode.REASONS`, "silent", "no_id", "no_label", "label_too_long", NO_FILE or UNREADABLE. NO_FILE means
    that the audio file that the row names could not be read; UNREADABLE, that its shard or row group could not, so that its ID
    is unknown.
    """

    id: str
    reason: str
    path: str
    source: str = "all"


@dataclass(frozen=True)
class LeftOut:
    """A row that this epoch does not take, by the weight of its source."""

    source: str


Row = Clip | Reject | LeftOut
