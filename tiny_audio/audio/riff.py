"""Repairs WAV and its relatives, AIFF, AU and CAF, which hold raw samples behind a header whose sizes are often wrong.

Streaming writers leave 0 or about 2^31 or 2^32, crashed recorders leave an old size, and careless ones count the header
in. This module finds the samples and writes a plain header before them, so that the decoder sees no other.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

UNKNOWN_SIZE = 2**62
PLACEHOLDERS = (2**30, 2**31, 2**32)  # what streaming writers put in for a size, or up to `PLACEHOLDER_BYTES` less
PLACEHOLDER_BYTES = 2**16
SPARE_BYTES = 64  # largest excess from a header in its own count
LARGEST_SIZE = 0xFFFF_FFFF  # of 32 bits
MAX_CHUNKS = 10_000  # of one file: a bound on the walk over hostile bytes
AIFC_SAMPLE_BYTES = {b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1, b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8}
NIST_FIELDS = (b"sample_count", b"channel_count", b"sample_n_bytes")
AIFC_PCM = (b"NONE", b"twos", b"sowt", b"raw ", b"in24", b"in32", b"42ni", b"23ni")


class Chunk(NamedTuple):
    """Describes a chunk: its name, where its header and its content begin, and how many bytes of content it promises."""

    name: bytes
    position: int
    start: int
    size: int


Chunks = Callable[[memoryview], Iterator[Chunk]]


def _is_name(name: bytes | memoryview) -> bool:
    name = bytes(name)
    return len(name) == 4 and name.isascii() and all(32 <= byte < 127 for byte in name) and name[:1].isalpha()


def _is_chunks(rest: memoryview, order: str) -> bool:
    """Says whether `rest` is other chunks, a tag or a few stray bytes, and not further samples."""
    if len(rest) < SPARE_BYTES or rest[:3] in (b"TAG", b"ID3"):
        return True
    return _is_name(rest[:4]) and struct.unpack_from(order + "I", rest, 4)[0] <= len(rest)


def _order(data: memoryview) -> str:
    return ">" if data[:4] in (b"RIFX", b"FORM") else "<"


def _riff_chunks(data: memoryview) -> Iterator[Chunk]:
    """Yields the chunks of a WAV, RF64, BW64 or AIFF file, and copes with odd ones that lack their padding."""
    position, long_size, order = 12, 0, _order(data)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        name, size = struct.unpack_from(order + "4sI", data, position)
        if name == b"ds64" and position + 24 <= len(data):
            long_size = struct.unpack_from("<Q", data, position + 16)[0]
        if name == b"data" and size == 0xFFFF_FFFF and long_size:
            size = long_size
        yield Chunk(name, position, position + 8, size)
        stop = position + 8 + size
        position = stop + (size % 2 and not _is_name(data[stop : stop + 4]))


def _w64_chunks(data: memoryview) -> Iterator[Chunk]:
    """Yields the chunks of a Sony Wave64 file by the first four letters of their names; sizes there count the header in."""
    position = 40
    for _ in range(MAX_CHUNKS):
        if position + 24 > len(data):
            return
        size = max(24, int.from_bytes(data[position + 16 : position + 24], "little"))
        yield Chunk(bytes(data[position : position + 4]), position, position + 24, size - 24)
        position += size + -size % 8


def _caf_chunks(data: memoryview) -> Iterator[Chunk]:
    """Yields the chunks of a CAF file; the size -1 of the last one means up to the end."""
    position = 8
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            return
        name, size = struct.unpack_from(">4sq", data, position)
        yield Chunk(name, position, position + 12, size)
        if size < 0:
            return
        position += 12 + size


def _links(chunks: Chunks, *magics: bytes) -> Callable[[memoryview], Iterator[int]]:
    """Makes a finder of the places where files of one kind begin, since others may follow the chunks of the first."""

    def starts(data: memoryview) -> Iterator[int]:
        start: int | None = 0
        while start is not None:
            yield start
            positions = (chunk.position for chunk in chunks(data[start:]) if chunk.name in magics)
            start = next((start + position for position in positions), None)

    return starts


LINKS = {
    "aiff": _links(_riff_chunks, b"FORM"),
    "caf": _links(_caf_chunks, b"caff"),
    "w64": _links(_w64_chunks, b"riff"),
    "wav": _links(_riff_chunks, b"RIFF", b"RIFX", b"RF64", b"BW64"),
}


def _is_known(size: int) -> bool:
    """Says whether a size is one, and not a placeholder."""
    return 0 <= size < UNKNOWN_SIZE and not any(0 <= limit - size <= PLACEHOLDER_BYTES for limit in PLACEHOLDERS)


def _samples(data: memoryview, start: int, promised: int, order: str, byte_rate: float, frame_bytes: int) -> memoryview:
    """Returns the bytes of the samples, given how many the chunk promises.

    Raises:
        EOFError: more than `SPARE_BYTES` and 10 ms of the samples are missing, or part of the last one.
    """
    rest = data[start:]
    if not _is_known(promised):
        return rest
    missing = promised - len(rest)
    if missing > max(SPARE_BYTES, byte_rate / 100) or (missing > 0 and len(rest) % max(1, frame_bytes)):
        raise EOFError(f"{_length(missing, byte_rate)} of its sound are missing")
    if missing >= 0 or _is_chunks(rest[promised + promised % 2 :], order) or _is_chunks(rest[promised:], order):
        return rest[:promised]
    return rest


def _length(num_bytes: int, byte_rate: float) -> str:
    return f"{num_bytes / byte_rate:.2f} s" if byte_rate else f"{num_bytes} bytes"


def _wav(form: bytes, samples: memoryview, order: str = "<") -> tuple[memoryview | bytes, ...]:
    size = 20 + len(form) + len(form) % 2 + len(samples)
    if size > LARGEST_SIZE:
        raise ValueError("its sound has over 4 GiB; recode it, as FLAC for instance")
    head = struct.pack(order + "4sI4s4sI", b"RIFX" if order == ">" else b"RIFF", size, b"WAVE", b"fmt ", len(form))
    head += form + b"\0" * (len(form) % 2) + struct.pack(order + "4sI", b"data", len(samples))
    return head, samples


def _rates(form: bytes, order: str) -> tuple[int, int]:
    """Reads from a fmt chunk the bytes per second, and the bytes per block or per sample over all channels."""
    return struct.unpack_from(order + "IH", form, 8) if len(form) >= 16 else (0, 1)


def _sound(data: memoryview, chunks: Iterator[Chunk]) -> tuple[bytes, Chunk]:
    """Returns the content of the fmt chunk, and the data chunk that follows.

    Raises:
        EOFError: there is no data chunk.
        ValueError: there are several, of which a decoder would hear the first alone.
    """
    form, sounds = b"", []
    for chunk in chunks:
        if chunk.name == b"fmt ":
            form = bytes(data[chunk.start : chunk.start + chunk.size])
        if chunk.name == b"data" and form:
            sounds.append(chunk)
    if not sounds:
        raise EOFError("there is no data chunk in it")
    if len(sounds) > 1:
        raise ValueError(f"its sound lies in {len(sounds)} data chunks")
    return form, sounds[0]


def plain_wav(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Rewrites a WAV, RF64 or BW64 file as a WAV of two chunks, whatever its sizes say."""
    form, sound = _sound(data, _riff_chunks(data))
    order, promised = _order(data), sound.size
    if promised == 0 and not _is_name(data[sound.start : sound.start + 4]):
        promised = UNKNOWN_SIZE
    return _wav(form, _samples(data, sound.start, promised, order, *_rates(form, order)), order)


def plain_w64(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Rewrites a Sony Wave64 file as a WAV."""
    form, sound = _sound(data, _w64_chunks(data))
    promised, rest = sound.size or UNKNOWN_SIZE, data[sound.start :]
    known = _is_known(promised) and promised % 8 + len(rest) > promised  # possibly with other chunks behind
    return _wav(form, rest[:promised] if known else _samples(data, sound.start, promised, "<", *_rates(form, "<")))


def _frame_bytes(common: bytes) -> int:
    """Reads from COMM the bytes per sample over all channels, or returns 0 if the compression has no fixed size."""
    channels, bits, compression = *struct.unpack_from(">H4xH", common), common[18:22] or b"NONE"
    of_pcm = (bits + 7) // 8 if compression in AIFC_PCM else 0
    return channels * AIFC_SAMPLE_BYTES.get(compression, of_pcm)


def plain_aiff(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Rewrites an AIFF or AIFC file with two chunks, whatever its sizes say."""
    common = b""
    for chunk in _riff_chunks(data):
        if chunk.name == b"COMM" and chunk.size >= 18:
            common = bytes(data[chunk.start : chunk.start + chunk.size])
        if chunk.name == b"SSND" and len(common) >= 18:
            return _aiff(bytes(data[8:12]), common, data, chunk.start, chunk.size)
    raise EOFError("there is no SSND chunk in it")


def _aiff(kind: bytes, common: bytes, data: memoryview, start: int, size: int) -> tuple[memoryview | bytes, ...]:
    frame_bytes, num_frames = _frame_bytes(common), struct.unpack_from(">I", common, 2)[0]
    offset = 8 + struct.unpack_from(">I", data, start)[0] if start + 8 <= len(data) else 8
    known = size > 8 and _is_known(size)
    promised = size - offset if known else num_frames * frame_bytes or UNKNOWN_SIZE
    byte_rate = frame_bytes * _extended(common[8:18])
    samples = _samples(data, start + offset, max(promised, 0), ">", byte_rate, frame_bytes)
    if frame_bytes:
        common = common[:2] + struct.pack(">I", len(samples) // frame_bytes) + common[6:]
    body = struct.pack(">4sI", b"COMM", len(common)) + common + b"\0" * (len(common) % 2)
    body += struct.pack(">4sIII", b"SSND", 8 + len(samples), 0, 0)
    padding = b"\0" * (len(samples) % 2)
    size = 4 + len(body) + len(samples) + len(padding)
    return struct.pack(">4sI4s", b"FORM", size, kind) + body, samples, padding


def _extended(data: bytes) -> float:
    """Reads an 80-bit float, AIFF's form of the sample rate, or returns 0 if it cannot be a sample rate."""
    exponent, mantissa = struct.unpack(">HQ", data)
    return mantissa * 2.0 ** (exponent - 16383 - 63) if 16383 <= exponent < 16383 + 32 else 0.0


def plain_au(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Rewrites an AU file so that its header promises what is there."""
    order = ">" if data[:4] == b".snd" else "<"
    if len(data) < 24:
        return (data,)
    start, promised = struct.unpack_from(order + "II", data, 4)
    if promised and _is_known(promised) and start <= len(data):
        _, rate, channels = struct.unpack_from(order + "III", data, 12)
        _samples(data, start, promised, order, min(rate, 10**6) * min(channels, 64), 1)
    return data[:8], struct.pack(order + "I", min(max(0, len(data) - start), LARGEST_SIZE)), data[12:]


def plain_caf(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Returns a CAF file whose data chunk promises what is there, rewriting the size if it is wrong."""
    sound = next((chunk for chunk in _caf_chunks(data) if chunk.name == b"data"), None)
    if sound is None:
        raise EOFError("there is no data chunk in it")
    rest = data[sound.start :]
    if _is_known(sound.size) and sound.size - len(rest) > SPARE_BYTES:
        raise EOFError(f"{sound.size - len(rest)} bytes are missing")
    if 0 <= sound.size <= len(rest):
        return (data,)
    return data[: sound.position + 4], struct.pack(">q", len(rest)), rest


def plain_nist(data: memoryview) -> tuple[memoryview | bytes, ...]:
    """Returns a NIST SPHERE file unchanged, or raises EOFError if sound that its header promises is missing."""
    head = bytes(data[:16384])
    count, channels, width = (re.search(rb"\n" + name + rb" -i (\d{1,12})", head) for name in NIST_FIELDS)
    size = re.match(rb"NIST_1A\n *(\d{1,5})\n", head)
    if size and count and width:
        promised = int(count[1]) * int(width[1]) * (int(channels[1]) if channels else 1)
        missing = int(size[1]) + promised - len(data)
        if missing > SPARE_BYTES and _is_known(promised):
            raise EOFError(f"{missing} bytes are missing")
    return (data,)
