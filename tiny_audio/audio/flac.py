"""Finds how many samples a FLAC file really holds: an encoder that writes to a pipe never says, and a header can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

STREAM_INFO = b"fLaC\x00\x00\x00\x22"
BLOCK_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
MAX_FRAME_BYTES = 2**20


@lru_cache(maxsize=2)
def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for value in range(256):
        crc = value << (bits - 8)
        for _ in range(8):
            crc = (crc << 1) ^ (polynomial if crc >> (bits - 1) else 0)
            crc &= (1 << bits) - 1
        table.append(crc)
    return table


def _crc8(data: bytes) -> int:
    table, crc = _crc_table(0x07, 8), 0
    for byte in data:
        crc = table[crc ^ byte]
    return crc


def _crc16(data: bytes) -> int:
    table, crc = _crc_table(0x8005, 16), 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ byte]
    return crc


def _coded_number(data: bytes) -> tuple[int, int]:
    """Reads a number of up to 36 bits in UTF-8 style as (value, length in bytes), or returns (-1, 0) if there is none."""
    if not data:
        return -1, 0
    length = 8 - (~data[0] & 0xFF).bit_length()
    if length == 0:
        return data[0], 1
    if length in (1, 8) or length > len(data):
        return -1, 0
    value = data[0] & (0x7F >> length)
    for byte in data[1:length]:
        if byte >> 6 != 2:
            return -1, 0
        value = value << 6 | byte & 0x3F
    return value, length


def _frame_end(tail: bytes, position: int, block_size: int) -> int:
    """Returns the number of the first sample after the frame that may begin here, or 0 if none does."""
    header = tail[position : position + 16]
    number, length = _coded_number(header[4:])
    code = header[2] >> 4 if len(header) > 6 else 0
    if not length or not code:
        return 0
    stop = 4 + length
    samples = BLOCK_SIZES[code]
    if code in (6, 7):
        samples = 1 + int.from_bytes(header[stop : stop + code - 5], "big")
        stop += code - 5
    stop += (0, 1, 2, 2)[max(0, (header[2] & 15) - 11)] if header[2] & 15 in (12, 13, 14) else 0
    if stop >= len(header) or _crc8(header[:stop]) != header[stop]:
        return 0
    return samples + (number if header[1] & 1 else number * block_size)


def _last_frames(tail: bytes, block_size: int) -> Iterator[tuple[int, int]]:
    """Yields (position, end in samples) of the last four places where a frame seems to begin, starting with the last."""
    position, seen = len(tail), 0
    while seen < 4 and (position := max(tail.rfind(b"\xff\xf8", 0, position), tail.rfind(b"\xff\xf9", 0, position))) >= 0:
        if end := _frame_end(tail, position, block_size):
            seen += 1
            yield position, end


def exact_header(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Returns the file, with the sample count taken from the last frame if the header gives a different count or none.

    Raises:
        EOFError: the last frame is incomplete, or there is none.
    """
    start = bytes(data[: 2**20]).find(STREAM_INFO)  # after an ID3 tag
    if start < 0:
        return (data,)
    field = start + 8 + 13  # 4 bits of another field, then 36 bits of sample count
    promised = int.from_bytes(data[field : field + 5], "big") & (1 << 36) - 1
    block_size = int.from_bytes(data[start + 10 : start + 12], "big")
    tail = bytes(data[-MAX_FRAME_BYTES:])
    last = list(_last_frames(tail, block_size))
    if not last:
        raise EOFError("there is no FLAC frame in it")
    if any(end == promised for _, end in last):
        return (data,)
    for position, end in last:
        if _crc16(tail[position:]) == 0:
            return data[:field], (data[field] >> 4 << 36 | end).to_bytes(5, "big"), data[field + 5 :]
    raise EOFError("its last FLAC frame is incomplete")
