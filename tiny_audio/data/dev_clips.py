"""Loads the clips that a training validates on."""

from __future__ import annotations

from tiny_audio.audio.clip import Clip
from tiny_audio.config import DataConfig, require
from tiny_audio.data.footers import read_dataset
from tiny_audio.data.labels import make_truecaser
from tiny_audio.data.plan import plan_pass
from tiny_audio.data.rows import UNREADABLE, Reject
from tiny_audio.data.shards import decode_slices


def load_dev_clips(data: DataConfig) -> list[Clip]:
    """Decodes the first `max_dev_rows` dev rows, in order.

    Raises:
        OSError: a file cannot be read now; another try may succeed.
        ConfigError: no row is usable.
    """
    groups = read_dataset(data.dev, data.max_dev_rows, columns=data.columns)
    decoded = decode_slices(plan_pass(groups), data.max_duration_s, make_truecaser(data), columns=data.columns)
    clips, rejects = ([row for row in decoded if isinstance(row, kind)] for kind in (Clip, Reject))
    unreadable = sorted({reject.path for reject in rejects if reject.reason == UNREADABLE})
    if unreadable:
        raise OSError(f"{unreadable[0]}: cannot be read; validation needs all of data.dev")
    reasons = sorted({reject.reason for reject in rejects})
    require(bool(clips), f"{data.dev}: every validation row is rejected: {', '.join(reasons)}")
    return clips
