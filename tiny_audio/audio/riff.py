"""Repairs WAV and its relatives, AIFF, AU and CAF, which hold raw samples behind a header whose sizes are often wrong.

Streaming writers leave 0 or about 2^31 or 2^32, crashed recorders leave an old size, and careless ones count the header
in. This module finds the samples and writes a plain header before them, so that the decoder sees no other.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

UNKNOWN_SIZE = 0x3FFF_0000  # lowest placeholder size of streaming writers, beyond anything decoded
SPARE_BYTES = 64  # largest excess from a header in its own count
AIFC_SAMPLE_BYTES = {b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1, b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8}
NIST_FIELDS = (b"sample_count", b"channel_count", b"sample_n_bytes")
AIFC_PCM = (b"NONE", b"twos", b"sowt", b"raw ", b"in24", b"in32", b"42ni", b"23ni")


def _is_name(name: bytes | memoryview) -> bool:
    name = bytes(name)
    return len(name) == 4 and name.isascii() and all(32 <= byte < 127 for byte in name) and name[:1].isalpha()


def _is_chunks(rest: memoryview, order: str) -> bool:
    """Says whether `rest` is other chunks, a tag or a few stray bytes, and not further samples."""
    if len(rest) < SPARE_BYTES or rest[:3] in (b"TAG", b"ID3"):
        return True
    return _is_name(rest[:4]) and struct.unpack_from(order + "I", rest, 4)[0] <= len(rest)


def _chunks(data: memoryview, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, start of the content, promised size) of every chunk, and copes with odd chunks that lack their padding."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from(order + "4sI", data, position)
        yield name, position + 8, size
        stop = position + 8 + size
        position = stop + (size % 2 and not _is_name(data[stop : stop + 4]))


def _samples(data: memoryview, start: int, promised: int, order: str, byte_rate: float, frame_bytes: int) -> memoryview:
    """Returns the bytes of the samples, given how many the chunk promises.

    Raises:
        EOFError: more than `SPARE_BYTES` and 10 ms of the samples are missing, or part of the last one.
    """
    rest = data[start:]
    if promised >= UNKNOWN_SIZE:
        return rest
    missing = promised - len(rest)
    if missing > max(SPARE_BYTES, byte_rate / 100) or (missing > 0 and len(rest) % max(1, frame_bytes)):
        raise EOFError(f"{_length(missing, byte_rate)} of its sound are missing")
    if missing >= 0 or _is_chunks(rest[promised + promised % 2 :], order) or _is_chunks(rest[promised:], order):
        return rest[:promised]
    return rest


def _length(num_bytes: int, byte_rate: float) -> str:
    return f"{num_bytes / byte_rate:.2f} s" if byte_rate else f"{num_bytes} bytes"


def _wav(form: bytes, samples: memoryview | bytes, order: str = "<") -> bytes:
    size = 20 + len(form) + len(form) % 2 + len(samples)
    head = struct.pack(order + "4sI4s4sI", b"RIFX" if order == ">" else b"RIFF", size, b"WAVE", b"fmt ", len(form))
    return b"".join([head, form, b"\0" * (len(form) % 2), struct.pack(order + "4sI", b"data", len(samples)), samples])


def _wav_content(data: memoryview) -> tuple[bytes, int, int, str]:
    """Returns (fmt chunk, start of the samples, their promised bytes, byte order); raises EOFError if there is no data chunk."""
    order = ">" if data[:4] == b"RIFX" else "<"
    form, long_size = b"", 0
    for name, start, size in _chunks(data, order):
        if name == b"ds64" and start + 16 <= len(data):
            long_size = struct.unpack_from("<Q", data, start + 8)[0]
        if name == b"fmt ":
            form = bytes(data[start : start + size])
        if name == b"data" and form:
            return form, start, (long_size or size) if size == 0xFFFF_FFFF else size, order
    raise EOFError("there is no data chunk in it")


def _rates(form: bytes, order: str) -> tuple[int, int]:
    """Reads from a fmt chunk the bytes per second, and the bytes per block or per sample over all channels."""
    return struct.unpack_from(order + "IH", form, 8) if len(form) >= 16 else (0, 1)


def wav_links(data: memoryview) -> list[int]:
    """Finds where WAV files begin, since others may follow the samples of the first."""
    form, start, size, _ = _wav_content(data)
    starts = [0]
    while form and 0 < size < UNKNOWN_SIZE and data[start + size :][:4] == b"RIFF" and data[start + size + 8 :][:4] == b"WAVE":
        starts.append(start + size)
        form, position, size, _ = _wav_content(data[start + size :])
        start = starts[-1] + position
    return starts


def plain_wav(data: memoryview) -> bytes:
    """Rewrites a WAV, RF64 or BW64 file as a WAV of two chunks, whatever its sizes say."""
    form, start, promised, order = _wav_content(data)
    if promised == 0 and not _is_name(data[start : start + 4]):
        promised = UNKNOWN_SIZE
    return _wav(form, _samples(data, start, promised, order, *_rates(form, order)), order)


def plain_w64(data: memoryview) -> bytes:
    """Rewrites a Sony Wave64 file as a WAV."""
    position, form = 40, b""
    while position + 24 <= len(data):
        name, size = bytes(data[position : position + 4]), int.from_bytes(data[position + 16 : position + 24], "little")
        if name == b"fmt ":
            form = bytes(data[position + 24 : position + size])
        if name == b"data" and form:
            promised = size - 24 if size > 24 else UNKNOWN_SIZE
            rest = data[position + 24 :]
            known = promised < UNKNOWN_SIZE and promised % 8 + len(rest) > promised  # possibly with other chunks behind
            samples = rest[:promised] if known else _samples(data, position + 24, promised, "<", *_rates(form, "<"))
            return _wav(form, samples)
        position += max(24, size + -size % 8)
    raise EOFError("there is no data chunk in it")


def _frame_bytes(common: bytes) -> int:
    """Reads from COMM the bytes per sample over all channels, or returns 0 if the compression has no fixed size."""
    channels, bits, compression = *struct.unpack_from(">H4xH", common), common[18:22] or b"NONE"
    of_pcm = (bits + 7) // 8 if compression in AIFC_PCM else 0
    return channels * AIFC_SAMPLE_BYTES.get(compression, of_pcm)


def plain_aiff(data: memoryview) -> bytes:
    """Rewrites an AIFF or AIFC file with two chunks, whatever its sizes say."""
    common = b""
    for name, start, size in _chunks(data, ">"):
        if name == b"COMM" and size >= 18:
            common = bytes(data[start : start + size])
        if name == b"SSND" and len(common) >= 18:
            return _aiff(bytes(data[8:12]), common, data, start, size)
    raise EOFError("there is no SSND chunk in it")


def _aiff(kind: bytes, common: bytes, data: memoryview, start: int, size: int) -> bytes:
    frame_bytes, num_frames = _frame_bytes(common), struct.unpack_from(">I", common, 2)[0]
    offset = 8 + struct.unpack_from(">I", data, start)[0] if start + 8 <= len(data) else 8
    known = 0 < size - 8 < UNKNOWN_SIZE
    promised = size - offset if known else num_frames * frame_bytes or UNKNOWN_SIZE
    byte_rate = frame_bytes * _extended(common[8:18])
    samples = _samples(data, start + offset, max(promised, 0), ">", byte_rate, frame_bytes)
    if frame_bytes:
        common = common[:2] + struct.pack(">I", len(samples) // frame_bytes) + common[6:]
    body = struct.pack(">4sI", b"COMM", len(common)) + common + b"\0" * (len(common) % 2)
    body += struct.pack(">4sIII", b"SSND", 8 + len(samples), 0, 0) + bytes(samples) + b"\0" * (len(samples) % 2)
    return struct.pack(">4sI4s", b"FORM", 4 + len(body), kind) + body


def _extended(data: bytes) -> float:
    """Reads an 80-bit float, AIFF's form of the sample rate, or returns 0 if it cannot be a sample rate."""
    exponent, mantissa = struct.unpack(">HQ", data)
    return mantissa * 2.0 ** (exponent - 16383 - 63) if 16383 <= exponent < 16383 + 32 else 0.0


def plain_au(data: memoryview) -> memoryview | bytes:
    """Rewrites an AU file so that its header promises what is there."""
    order = ">" if data[:4] == b".snd" else "<"
    if len(data) < 24:
        return data
    start, promised = struct.unpack_from(order + "II", data, 4)
    if 0 < promised < UNKNOWN_SIZE and start <= len(data):
        _, rate, channels = struct.unpack_from(order + "III", data, 12)
        _samples(data, start, promised, order, min(rate, 10**6) * min(channels, 64), 1)
    return b"".join([data[:8], struct.pack(order + "I", max(0, len(data) - start)), data[12:]])


def plain_caf(data: memoryview) -> memoryview | bytes:
    """Returns a CAF file whose data chunk promises what is there, rewriting the size if it is wrong."""
    position = 8
    while position + 12 <= len(data):
        name, size = struct.unpack_from(">4sq", data, position)
        rest = data[position + 12 :]
        if name == b"data":
            if 0 <= size < UNKNOWN_SIZE and size - len(rest) > SPARE_BYTES:
                raise EOFError(f"{size - len(rest)} bytes are missing")
            if 0 <= size <= len(rest):
                return data
            return b"".join([data[: position + 4], struct.pack(">q", len(rest)), rest])
        if size < 0:
            break
        position += 12 + size
    raise EOFError("there is no data chunk in it")


def plain_nist(data: memoryview) -> memoryview:
    """Returns a NIST SPHERE file unchanged, or raises EOFError if sound that its header promises is missing."""
    head = bytes(data[:16384])
    count, channels, width = (re.search(rb"\n" + name + rb" -i (\d{1,12})", head) for name in NIST_FIELDS)
    size = re.match(rb"NIST_1A\n *(\d{1,5})\n", head)
    if size and count and width:
        promised = int(count[1]) * int(width[1]) * (int(channels[1]) if channels else 1)
        missing = int(size[1]) + promised - len(data)
        if missing > SPARE_BYTES and promised < UNKNOWN_SIZE:
            raise EOFError(f"{missing} bytes are missing")
    return data
