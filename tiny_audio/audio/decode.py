"""Decodes audio bytes to mono 16 kHz PCM, or gives a reason for refusing; runs on CPU nodes and in the HTTP ingress, without Ray.

libsndfile reads WAV, FLAC, MP3, Ogg, Opus and similar formats, FFmpeg reads the rest (see `foreign`), and soxr resamples.
The output is int16, since a second of it takes 32 kB where 128 float32 mels would take 51 kB.
"""

from __future__ import annotations

import io
from itertools import islice, pairwise

import numpy as np
import soundfile
import soxr

from tiny_audio.audio import containers, flac, foreign, mix, mpeg, riff
from tiny_audio.audio.clip import SAMPLE_RATE

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


def _read_native(data: memoryview | bytes, max_duration_s: float) -> tuple[np.ndarray, int]:
    """Reads (S, channels) float32 and the sample rate with libsndfile, without relying on the length that it reports."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        rate, channels, promised = file.samplerate, file.channels, file.frames
        if rate not in SAMPLE_RATES:
            raise AudioError("not_audio", f"a sample rate of {rate} Hz is not taken")
        if min(promised / rate, max_duration_s) * rate * channels > max_duration_s * MAX_SAMPLES_PER_S:
            raise AudioError("too_long", f"{channels} channels at {rate} Hz are more than is decoded")
        samples = _read_all(file, int(max_duration_s * rate))
    if len(samples) > max_duration_s * rate:
        raise _too_long(max(promised, len(samples)) / rate, max_duration_s)
    if len(samples) < promised - MP3_FRAME:
        raise AudioError("truncated", f"audio ends after {len(samples) / rate:.2f} of {promised / rate:.2f} s")
    return samples, rate


def _read_all(file: soundfile.SoundFile, limit: int) -> np.ndarray:
    """Reads (S, channels) float32 until nothing more can be read, or until S exceeds `limit`."""
    blocks, num_samples = [np.zeros((0, file.channels), np.float32)], 0
    while num_samples <= limit:
        try:
            block = file.read(max(1, BLOCK_SAMPLES // file.channels), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            break
        if not len(block):
            break
        blocks.append(block)
        num_samples += len(block)
    return np.concatenate(blocks)


def _read(data: memoryview, kind: str, max_duration_s: float) -> list[tuple[np.ndarray, int]]:
    """Reads one stream as (samples, sample rate), with several pairs if the format changes midway."""
    plain = PLAIN[kind](data) if kind in PLAIN else data
    if kind in NATIVE and not (kind == "ogg" and containers.has_tracks(data)):
        try:
            return [_read_native(plain, max_duration_s)]
        except soundfile.LibsndfileError:
            pass  # unsupported codec, or damage that FFmpeg may identify
    return foreign.read_foreign(plain, kind, max_duration_s, int(max_duration_s * MAX_SAMPLES_PER_S))


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


def _links(data: memoryview, kind: str) -> list[memoryview]:
    """Splits a file into its end-to-end streams, usually one; a decoder can read each to its end as a file of its own."""
    starts = list(islice(LINKS[kind](data), 1, MAX_LINKS + 1)) if kind in LINKS else []
    if len(starts) >= MAX_LINKS:
        raise AudioError("damaged", f"the file holds over {MAX_LINKS} streams end to end")
    return [data[start:stop] for start, stop in pairwise([0, *starts, len(data)])]


def _waveform(samples: np.ndarray, rate: int) -> np.ndarray:
    """Converts (S, channels) float32 to mono (S',) float32 at 16 kHz; raises AudioError if a sample is not finite or is huge."""
    if not np.isfinite(samples).all():
        raise AudioError("not_finite", "the audio holds NaN or infinite samples")
    if np.abs(samples).max() > LARGEST_SAMPLE:
        raise AudioError("not_finite", f"the audio holds samples of {np.abs(samples).max():.1e}; full scale is 1")
    mono = mix.to_mono(samples)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def _decode(data: memoryview, max_duration_s: float) -> np.ndarray:
    data = _without_tags(data)
    kind = _kind(data)
    waveforms, duration_s = [], 0.0
    for link in _links(data, kind):
        for samples, rate in _read(link, kind, max_duration_s):
            duration_s += len(samples) / rate
            if duration_s > max_duration_s:
                raise _too_long(duration_s, max_duration_s)
            if len(samples):
                waveforms.append(_waveform(samples, rate))
    if duration_s * SAMPLE_RATE < MIN_SAMPLES:
        raise AudioError("no_samples", f"the audio lasts {1000 * duration_s:.1f} ms, too short to hear anything")
    return mix.to_int16(np.concatenate(waveforms))


def _require_size(data: memoryview, max_duration_s: float) -> None:
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
    _require_size(view, max_duration_s)
    try:
        return _decode(view, max_duration_s)
    except AudioError:
        raise
    except foreign.Refused as error:
        raise AudioError(error.reason, str(error)) from None
    except EOFError as error:
        reason = "truncated" if len(view) > SHORTEST_HEADER else "not_audio"
        raise AudioError(reason, f"the file is cut short: {error}") from None
    except Exception as error:  # misleading header in untrusted bytes
        raise AudioError("damaged", f"not readable as audio: {error}") from error
