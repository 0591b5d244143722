"""Decodes audio bytes to mono 16 kHz PCM, or gives a reason for refusing; runs on CPU nodes and in the HTTP ingress, without Ray.

libsndfile reads WAV, FLAC, MP3, Ogg, Opus and similar formats, FFmpeg reads the rest (see `foreign`), and soxr resamples.
The output is int16, since a second of it takes 32 kB where 128 float32 mels would take 51 kB.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby, islice, pairwise

import numpy as np
import soundfile
import soxr

from tiny_audio.audio import containers, flac, foreign, mix, mpeg, riff
from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.pieces import Pieces

REASONS = ("empty", "not_audio", "truncated", "damaged", "no_samples", "not_finite", "too_long")
TAKEN = "WAV, FLAC, MP3, M4A, MP4, AAC, Ogg, Opus, WebM, AIFF, AU, CAF, W64, AMR, 3GP or MPEG"
MIN_SAMPLES = SAMPLE_RATE // 100  # 10 ms, one mel frame: too short for speech
MP3_FRAME = 1152  # samples: tolerated excess of an MP3 header's promise
MAX_LINKS = 64  # most streams end to end in one file
MAX_SAMPLES_PER_S = 8 * 48_000  # over all channels: protection against small files that decode to gigabytes
BYTES_PER_SAMPLE = 4  # widest accepted audio: float32
SPARE_BYTES = 2**20  # for headers, tags and a cover picture
SAMPLE_RATES = range(1000, 1_000_000)
BLOCK_SAMPLES = 2**18  # block size of a read, over all channels
SHORTEST_HEADER = 43  # bytes: a file cut within its header has no recognizable format
LARGEST_SAMPLE = 2.0**32  # beyond any plausible scale of a float file
PLAIN = {  # header repairs, by kind of file
    "aiff": riff.plain_aiff,
    "au": riff.plain_au,
    "caf": riff.plain_caf,
    "flac": flac.exact_header,
    "mp3": mpeg.exact_mp3,
    "nist": riff.plain_nist,
    "w64": riff.plain_w64,
    "wav": riff.plain_wav,
}
NATIVE = (*PLAIN, "ogg")  # kinds for libsndfile
LINKS = {
    **containers.LINKS,
    **riff.LINKS,
    "adts": mpeg.adts_links,
    "mp2": mpeg.mp3_links,
    "mp3": mpeg.mp3_links,
}


Block = tuple[int, int, np.ndarray]  # number of a stretch of one format, sample rate, (S, channels) float32


@dataclass(frozen=True)
class Link:
    """Holds one of the streams end to end in a file, its header repaired, and says whether libsndfile may read it."""

    kind: str
    file: Pieces
    native: bool


class AudioError(ValueError):
    """Reports audio that cannot be used: `reason` is one of `REASONS`, for counting, and the message explains it to a person."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))


def max_bytes(max_duration_s: float) -> int:
    """Returns the largest size of a file with a clip this long: 8 channels of float32 at 48 kHz, so 47 MB at 30 s."""
    return int(max_duration_s * MAX_SAMPLES_PER_S) * BYTES_PER_SAMPLE + SPARE_BYTES


def _seconds(duration_s: float, limit_s: float) -> str:
    """Formats a duration over a limit with enough digits to tell it from the limit."""
    digits = next((digits for digits in range(1, 6) if round(duration_s, digits) > limit_s), 6)
    return f"{duration_s:.{digits}f} s"


def _too_long(duration_s: float, limit_s: float) -> AudioError:
    return AudioError("too_long", f"audio lasts {_seconds(duration_s, limit_s)}; the longest taken is {limit_s:g} s")


def _native_blocks(file: soundfile.SoundFile, max_duration_s: float) -> Iterator[Block]:
    """Reads a file with libsndfile, without relying on the length that it reports."""
    rate, channels, promised = file.samplerate, file.channels, file.frames
    if rate not in SAMPLE_RATES:
        raise AudioError("not_audio", f"a sample rate of {rate} Hz is not taken")
    if min(promised / rate, max_duration_s) * rate * channels > max_duration_s * MAX_SAMPLES_PER_S:
        raise AudioError("too_long", f"{channels} channels at {rate} Hz are more than is decoded")
    num_samples = 0
    while num_samples <= int(max_duration_s * rate):
        try:
            samples = file.read(max(1, BLOCK_SAMPLES // channels), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            break
        if not len(samples):
            break
        num_samples += len(samples)
        yield 0, rate, samples
    if num_samples > max_duration_s * rate:
        raise _too_long(max(promised, num_samples) / rate, max_duration_s)
    if num_samples < promised - MP3_FRAME:
        raise AudioError("truncated", f"audio ends after {num_samples / rate:.2f} of {promised / rate:.2f} s")


def _link_blocks(link: Link, max_duration_s: float, at_once: bool) -> Iterator[Block]:
    """Yields the sound of one stream: with libsndfile where that knows it, else with FFmpeg."""
    link.file.seek(0)
    if link.native:
        with suppress(soundfile.LibsndfileError):  # unsupported codec, or damage that FFmpeg may identify
            sound = soundfile.SoundFile(link.file)
            with sound:
                yield from _native_blocks(sound, max_duration_s)
            return
    yield from foreign.read_foreign(link.file, link.kind, max_duration_s, int(max_duration_s * MAX_SAMPLES_PER_S), at_once)


def _without_tags(data: memoryview) -> memoryview:
    """Leaves out the ID3 tags that taggers put before any kind of file."""
    while size := mpeg.id3_bytes(data):
        data = data[size:]
    return data


def _kind(data: memoryview) -> str:
    """Identifies the kind of file, and tries MP3 and AAC last because they have no header."""
    head = bytes(data[: 64 * 1024])
    kind = containers.sniff(head) or mpeg.sniff(head)
    if not kind:
        raise AudioError("not_audio", f"not readable as audio; taken are {TAKEN}")
    return kind


def read_links(data: memoryview) -> list[Link]:
    """Splits a file into its end-to-end streams, usually one; a decoder can read each to its end as a file of its own.

    Raises:
        AudioError: the kind of file is unknown, or there are too many streams.
        EOFError: the file is cut short.
    """
    data = _without_tags(data)
    kind = _kind(data)
    starts = list(islice(LINKS[kind](data), 1, MAX_LINKS + 1)) if kind in LINKS else []
    if len(starts) >= MAX_LINKS:
        raise AudioError("damaged", f"the file holds over {MAX_LINKS} streams end to end")
    links = []
    for start, stop in pairwise([0, *starts, len(data)]):
        part = data[start:stop]
        native = kind in NATIVE and not (kind == "ogg" and containers.has_tracks(part))
        links.append(Link(kind, Pieces(*(PLAIN[kind](part) if kind in PLAIN else (part,))), native))
    return links


def read_blocks(links: list[Link], max_duration_s: float, at_once: bool = True) -> Iterator[Block]:
    """Decodes the streams of a file, in order, in blocks of a few seconds.

    Args:
        at_once: whether the caller takes the blocks without delay.

    Yields:
        A number that goes up with each stream and each change of format, the sample rate, and (S, channels) float32.
    """
    duration_s, number = 0.0, -1
    for link in links:
        format_before = None
        for format_number, rate, samples in _link_blocks(link, max_duration_s, at_once):
            number, format_before = number + (format_number != format_before), format_number
            duration_s += len(samples) / rate
            if duration_s > max_duration_s:
                raise _too_long(duration_s, max_duration_s)
            _require_plausible(samples)
            yield number, rate, samples


def _require_plausible(samples: np.ndarray) -> None:
    if not np.isfinite(samples).all():
        raise AudioError("not_finite", "the audio holds NaN or infinite samples")
    if np.abs(samples).max(initial=0) > LARGEST_SAMPLE:
        raise AudioError("not_finite", f"the audio holds samples of {np.abs(samples).max():.1e}; full scale is 1")


def require_heard(duration_s: float) -> None:
    """Raises AudioError if a recording is too short for speech."""
    if duration_s * SAMPLE_RATE < MIN_SAMPLES:
        raise AudioError("no_samples", f"the audio lasts {1000 * duration_s:.1f} ms, too short to hear anything")


def _decode(data: memoryview, max_duration_s: float) -> np.ndarray:
    waveforms, duration_s = [], 0.0
    for _, blocks in groupby(read_blocks(read_links(data), max_duration_s), key=lambda block: block[:2]):
        blocks = list(blocks)
        rate, samples = blocks[0][1], np.concatenate([samples for _, _, samples in blocks])
        duration_s += len(samples) / rate
        mono = mix.to_mono(samples)
        waveforms.append(mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE))
    require_heard(duration_s)
    return mix.to_int16(np.concatenate(waveforms))


def require_size(data: memoryview, max_duration_s: float) -> None:
    if not data:
        raise AudioError("empty", "the audio is empty (0 bytes)")
    if len(data) > max_bytes(max_duration_s):
        limit = f"the longest taken is {max_duration_s:g} s, which fill {max_bytes(max_duration_s) / 1e6:.0f} MB at most"
        raise AudioError("too_long", f"audio of {_header_seconds(data)}{len(data) / 1e6:.0f} MB is not decoded; {limit}")


def _header_seconds(data: memoryview) -> str:
    """Says how long a file lasts according to its header, for a person to read, or returns "" if the header does not say."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return f"{file.frames / file.samplerate:.0f} s and "
    except (soundfile.LibsndfileError, ValueError):
        return ""


def decode(data: bytes | memoryview, max_duration_s: float = 30.0) -> np.ndarray:
    """Decodes one clip of audio in any supported format.

    Args:
        data: the bytes of an audio file with any number of channels and any sample rate.
        max_duration_s: longer clips are refused as soon as this much is decoded, and so are files larger than its `max_bytes`.

    Returns:
        (S,) int16, mono, 16 kHz.

    Raises:
        AudioError: the audio cannot be used, for its `reason`. Nothing else is raised, whatever the bytes.
    """
    view = memoryview(data).cast("B")
    require_size(view, max_duration_s)
    with as_audio_errors(len(view)):
        return _decode(view, max_duration_s)


@contextmanager
def as_audio_errors(num_bytes: int) -> Iterator[None]:
    """Turns whatever reading a file of so many bytes may raise into an AudioError."""
    try:
        yield
    except AudioError:
        raise
    except foreign.Refused as error:
        raise AudioError(error.reason, str(error)) from None
    except EOFError as error:
        reason = "truncated" if num_bytes > SHORTEST_HEADER else "not_audio"
        raise AudioError(reason, f"the file is cut short: {error}") from None
    except Exception as error:  # misleading header in untrusted bytes
        raise AudioError("damaged", f"not readable as audio: {error}") from error
