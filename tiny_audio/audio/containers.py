"""Identifies the kind of a file, finds where its streams begin, and checks that everything its container promises is there.

A decoder silently accepts a file that was cut in half, and stops after the first of two streams. The container knows
better: its boxes, pages and frames carry their sizes, so walking over them finds the cut and the seam without decoding a
sample. Sizes that streaming writers leave unset promise nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

MAGIC = {
    b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00": "w64",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b".snd": "au",
    b"dns.": "au",
    b"caff": "caf",
    b"NIST_1A": "nist",
    b"\x1a\x45\xdf\xa3": "webm",
    b"#!AMR\n": "amr",
    b"#!AMR-WB\n": "amr",
    b"\x00\x00\x01\xba": "mpeg",
}
OGG_PAGE = re.compile(b"OggS")
SEGMENT, CLUSTER, EBML = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x1a\x45\xdf\xa3"
AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)  # bytes per frame, by frame type (RFC 4867, 5.3)
AMR_WB_BYTES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)


def sniff(head: bytes) -> str:
    """Returns the kind of file that begins with `head`, or "" if the kind is unknown."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return "wav" if head[8:12] == b"WAVE" else ""
    if head[:4] == b"FORM":
        return "aiff" if head[8:12] in (b"AIFF", b"AIFC") else ""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
        return "mp4"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "mpegts"
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")


def _ogg_pages(data: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yields (position, flags, serial number, sequence number) of every page; raises EOFError if the last one is incomplete."""
    position = 0
    while position + 27 <= len(data):
        if data[position : position + 4] != b"OggS":
            following = OGG_PAGE.search(data, position)
            if following is None:
                return
            position = following.start()
            continue
        segments = data[position + 26]
        stop = position + 27 + segments + sum(data[position + 27 : position + 27 + segments])
        if stop > len(data):
            raise EOFError("its last Ogg page is incomplete")
        yield (
            position,
            data[position + 5],
            int.from_bytes(data[position + 14 : position + 18], "little"),
            int.from_bytes(data[position + 18 : position + 22], "little"),
        )
        position = stop
    if position < len(data) and data[position : position + 4] == b"OggS":
        raise EOFError("its last Ogg page is incomplete")


def _ogg_links(data: memoryview) -> list[int]:
    starts, next_page, headers = [], {}, True
    for position, flags, serial, sequence in _ogg_pages(data):
        first = bool(flags & 2)
        if first and (not headers or not starts):
            starts.append(position)
            next_page = {}
        headers = first
        if sequence != next_page.get(serial, sequence):
            raise EOFError(f"pages before the Ogg page {sequence} are missing")
        next_page[serial] = sequence + 1
    if headers:
        raise EOFError("there is no sound after its Ogg headers")
    return starts


def has_tracks(data: memoryview) -> bool:
    """Says whether several streams lie side by side in an Ogg file: two of its headers come before any other page."""
    flags = [flags for _, flags, _, _ in islice(_ogg_pages(data), 2)]
    return len(flags) == 2 and all(flag & 2 for flag in flags)


def _mp4_links(data: memoryview) -> list[int]:
    starts, position, names = [], 0, set()
    while position + 8 <= len(data):
        size, name = int.from_bytes(data[position : position + 4], "big"), bytes(data[position + 4 : position + 8])
        header = 8
        if size == 1 and position + 16 <= len(data):
            size, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        if size == 0:
            size = len(data) - position  # last box, up to the end of the file
        if size < header:
            raise ValueError(f"the MP4 file holds a box of {size} bytes")
        if position + size > len(data):
            raise EOFError(f"{position + size - len(data)} bytes of its box {name.decode('latin-1')!r} are missing")
        names.add(name)
        if name == b"ftyp" or not starts:
            starts.append(position)
        position += size
    if not names & {b"moov", b"mdat", b"moof"}:
        raise ValueError("the MP4 file holds no sound")
    if b"moov" not in names:
        raise EOFError("it has no index (moov)")
    return starts


def _ebml_number(data: memoryview, position: int, keep_marker: bool) -> tuple[int, int]:
    """Returns an EBML number as (value, its length in bytes), with the value -1 for an unknown size."""
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length() if first else 9
    if length > 8 or position + length > len(data):
        raise EOFError("its last element is incomplete")
    value = int.from_bytes(data[position : position + length], "big")
    if keep_marker:
        return value, length
    value &= (1 << 7 * length) - 1
    return (-1 if value == (1 << 7 * length) - 1 else value), length


def _webm_links(data: memoryview) -> list[int]:
    starts, position = [], 0
    while position < len(data):
        start = position
        value, length = _ebml_number(data, position, True)
        name = value.to_bytes(length, "big")
        size, size_length = _ebml_number(data, position + length, False)
        position += length + size_length
        if name == EBML:
            starts.append(start)
        if size > len(data) - position:
            raise EOFError(f"{size - (len(data) - position)} bytes of a WebM element are missing")
        if name not in (SEGMENT, CLUSTER):  # no skipping of these two: possibly unknown sizes
            if size < 0:
                raise ValueError("the WebM file holds an element of no size")
            position += size
    return starts


def _amr_links(data: memoryview) -> list[int]:
    wide = data[:9] == b"#!AMR-WB\n"
    sizes, magic = (AMR_WB_BYTES, b"#!AMR-WB\n") if wide else (AMR_BYTES, b"#!AMR\n")
    starts, position = [], 0
    while position < len(data):
        if data[position : position + len(magic)] == magic:
            starts.append(position)
            position += len(magic)
            continue
        position += sizes[data[position] >> 3 & 15]
    if position > len(data):
        raise EOFError("its last AMR frame is incomplete")
    return starts


def _mpeg_links(data: memoryview) -> list[int]:
    """Walks an MPEG program stream, where packs and packets carry their sizes but nothing gives the total; returns [0]."""
    position = 0
    while position + 6 <= len(data) and data[position : position + 3] == b"\x00\x00\x01":
        if data[position + 3] == 0xB9:  # the program's end
            position += 4
        elif data[position + 3] == 0xBA:
            newer = data[position + 4] >> 6 == 1  # MPEG 2, otherwise MPEG 1
            position += 14 + (data[position + 13] & 7) if newer and position + 14 <= len(data) else 12
        else:
            position += 6 + int.from_bytes(data[position + 4 : position + 6], "big")
    rest = bytes(data[position : position + 3])
    if position > len(data) or (rest and b"\x00\x00\x01".startswith(rest)):
        raise EOFError("its last MPEG packet is incomplete")
    return [0]


def _mpegts_links(data: memoryview) -> list[int]:
    if len(data) % 188:
        raise EOFError("its last MPEG packet is incomplete")
    return [0]


def _magic_links(magic: bytes) -> Callable[[memoryview], list[int]]:
    return lambda data: [found.start() for found in re.finditer(magic, data)]


LINKS: dict[str, Callable[[memoryview], list[int]]] = {
    "amr": _amr_links,
    "au": _magic_links(rb"\.snd\x00\x00[\x00-\x0f].{5}\x00\x00\x00[\x01-\x20]\x00"),
    "flac": _magic_links(rb"fLaC\x00\x00\x00\x22"),
    "mp4": _mp4_links,
    "mpeg": _mpeg_links,
    "mpegts": _mpegts_links,
    "ogg": _ogg_links,
    "webm": _webm_links,
}  # finders of stream starts, by kind of file; EOFError for a missing part
