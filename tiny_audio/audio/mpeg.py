"""Walks over MPEG audio frames, MP3 (with layers I and II) and AAC in ADTS, to count what is really there.

An MP3 has no length: its first frame may promise one ("Xing" or "Info"), and without it decoders guess from the size and
the first bit rate, too short or too long where the rate varies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_KBITS = {
    (3, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),  # MPEG 1, layer I
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),  # MPEG 2 and 2.5
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
MAX_JUNK_BYTES = 64 * 1024  # longest junk between frames


@dataclass(frozen=True)
class Frame:
    """Describes a frame of MPEG audio, as its header does."""

    num_bytes: int
    num_samples: int
    sample_rate: int
    format: int  # constant bits of a stream: version, layer, sample rate
    layer: int
    info_offset: int  # possible place of a Xing or Info tag


def id3_bytes(head: bytes | memoryview) -> int:
    """Returns the length of the ID3v2 tag at the beginning of a file, or 0 if there is none."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    a, b, c, d = (byte & 0x7F for byte in head[6:10])
    return 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)


def parse_frame(data: bytes | memoryview, position: int) -> Frame | None:
    """Returns the frame whose header lies at `position`, or None if there is none."""
    if position + 4 > len(data):
        return None
    (header,) = struct.unpack_from(">I", data, position)
    version, layer = header >> 19 & 3, header >> 17 & 3
    rate_code, bit_rate_code = header >> 10 & 3, header >> 12 & 15
    if header >> 21 != 0x7FF or version == 1 or layer == 0 or rate_code == 3 or bit_rate_code in (0, 15):
        return None
    kbits = _KBITS[(3 if version == 3 else 2, layer if version == 3 or layer == 3 else 2)][bit_rate_code]
    rate, padding = _RATES[rate_code] >> (3 - version if version else 2), header >> 9 & 1
    if layer == 3:
        num_bytes, num_samples = (12_000 * kbits // rate + padding) * 4, 384
    else:
        num_samples = 576 if layer == 1 and version != 3 else 1152
        num_bytes = num_samples * 125 * kbits // rate + padding
    mono = header >> 6 & 3 == 3
    side_info = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return Frame(num_bytes, num_samples, rate, header & 0xFFFE0C00, 4 - layer, 4 + side_info)


def _adts_bytes(data: bytes | memoryview, position: int) -> int:
    """Returns the length of the ADTS frame that begins at `position`, or 0 if none does."""
    if position + 6 > len(data) or data[position] != 0xFF or data[position + 1] & 0xF6 != 0xF0:
        return 0
    (length,) = struct.unpack_from(">I", data, position + 3)
    length = length >> 13 & 0x1FFF
    return length if length >= 7 else 0


def sniff(head: bytes) -> str:
    """Returns `mp3`, `mp2` (layers I and II) or `adts` if two frames of that kind are adjacent near the start, otherwise ""."""
    position = 0
    while 0 <= (position := head.find(b"\xff", position)) < MAX_JUNK_BYTES:
        frame, length = parse_frame(head, position), _adts_bytes(head, position)
        if length and (_adts_bytes(head, position + length) or position + length == len(head)):
            return "adts"
        if frame:
            following = parse_frame(head, position + frame.num_bytes)
            if (following and following.format == frame.format) or position + frame.num_bytes == len(head):
                return "mp3" if frame.layer == 3 else "mp2"
        position += 1
    return ""


def _resync(data: memoryview, position: int, format: int) -> int:
    """Returns the position of the next frames of this format, or the end of the data if there are none."""
    junk = bytes(data[position : position + MAX_JUNK_BYTES])
    at = 0
    while (at := junk.find(b"\xff", at)) >= 0:
        frame = parse_frame(data, position + at)
        if frame and frame.format == format:
            following = parse_frame(data, position + at + frame.num_bytes)
            if (following and following.format == format) or position + at + frame.num_bytes == len(data):
                return position + at
        at += 1
    return len(data)


def _mp3_frames(data: memoryview) -> Iterator[tuple[int, Frame]]:
    """Yields (position, frame) for every frame and skips tags and junk; the last frame may reach past the end."""
    position, format = id3_bytes(data), None
    while position + 4 <= len(data):
        frame = parse_frame(data, position)
        if frame and format in (None, frame.format):
            format = frame.format
            yield position, frame
            position += frame.num_bytes
        elif data[position : position + 3] == b"ID3":
            position += id3_bytes(data[position : position + 10])
            format = None
        elif data[position : position + 3] == b"TAG":
            position += 128
        elif format is None:
            first = next((at for at in range(position + 1, min(len(data), position + MAX_JUNK_BYTES)) if _begins(data, at)), None)
            if first is None:
                return
            position = first
        else:
            position = _resync(data, position + 1, format)


def _begins(data: memoryview, position: int) -> bool:
    frame = parse_frame(data, position) if data[position] == 0xFF else None
    following = frame and parse_frame(data, position + frame.num_bytes)
    return bool(following and following.format == frame.format)


def _promised_frames(data: memoryview, position: int, frame: Frame) -> int | None:
    """Returns the number of frames that a Xing, Info or VBRI tag promises (0 if unknown), or None if this frame holds sound."""
    tag = bytes(data[position + frame.info_offset : position + frame.info_offset + 12])
    if tag[:4] in (b"Xing", b"Info") and len(tag) == 12:
        return int.from_bytes(tag[8:12], "big") if tag[7] & 1 else 0
    tag = bytes(data[position + 36 : position + 54])
    return int.from_bytes(tag[14:18], "big") if tag[:4] == b"VBRI" and len(tag) == 18 else None


def mp3_links(data: memoryview) -> list[int]:
    """Finds where streams begin, at every tag and every change of format; raises EOFError if the last frame is incomplete."""
    starts, format, last = [], None, 0
    for position, frame in _mp3_frames(data):
        if format != frame.format or _promised_frames(data, position, frame) is not None:
            starts.append(position)
        format, last = frame.format, position + frame.num_bytes
    if last > len(data) or (len(data) - last < 4 and data[last:][:1] == b"\xff"):
        raise EOFError("its last MP3 frame is incomplete")
    return starts


def exact_mp3(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Returns an MP3 stream whose first frame says how many follow, adding that frame if it is missing or wrong.

    Raises:
        EOFError: there are fewer frames than the first one promises.
    """
    frames = _mp3_frames(data)
    position, first = next(frames, (0, None))
    if first is None:
        return (data,)
    promised = _promised_frames(data, position, first)
    num_frames = sum(1 for _ in frames) + (promised is None)
    if promised and num_frames < promised - 1:
        raise EOFError(f"it ends after {num_frames} of {promised} MP3 frames")
    if promised and num_frames <= promised + 1:
        return (data,)
    begin = position if promised is None else position + first.num_bytes
    return _info_frame(data, position, num_frames), data[begin:]


def _info_frame(data: memoryview, position: int, num_frames: int) -> bytes:
    """Makes a silent frame in the format of the one at `position` that promises `num_frames` frames."""
    (header,) = struct.unpack_from(">I", data, position)
    for bit_rate_code in range(1, 15):
        head = struct.pack(">I", header & 0xFFFF0DFF | 0x10000 | bit_rate_code << 12)  # no checksum, no padding
        frame = parse_frame(head, 0)
        if frame and frame.num_bytes >= frame.info_offset + 12:
            body = head.ljust(frame.info_offset, b"\0") + b"Info" + struct.pack(">II", 1, num_frames)
            return body.ljust(frame.num_bytes, b"\0")
    return b""


def adts_links(data: memoryview) -> list[int]:
    """Walks over an ADTS stream and returns [0], its only start; raises EOFError if the last frame is incomplete."""
    position = id3_bytes(data)
    while position < len(data):
        length = _adts_bytes(data, position)
        if not length:
            if data[position : position + 3] in (b"TAG", b"APE"):
                break
            if len(data) - position < 7 and data[position] == 0xFF:
                position = len(data) + 1
                break
            position = _next_adts(data, position + 1)
            continue
        position += length
    if position > len(data):
        raise EOFError("its last AAC frame is incomplete")
    return [0]


def _next_adts(data: memoryview, position: int) -> int:
    junk = bytes(data[position : position + MAX_JUNK_BYTES])
    at = 0
    while (at := junk.find(b"\xff", at)) >= 0:
        length = _adts_bytes(data, position + at)
        if length and (_adts_bytes(data, position + at + length) or position + at + length == len(data)):
            return position + at
        at += 1
    return len(data)
