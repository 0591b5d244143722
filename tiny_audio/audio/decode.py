"""Audio bytes to mono 16 kHz PCM, or a reason why not. Runs on CPU nodes and in the HTTP ingress; knows nothing of Ray.

libsndfile reads WAV, FLAC, MP3, Ogg, Opus and their like; what it cannot read goes to FFmpeg (see `foreign`), and soxr
resamples. int16 travels on from here: 32 kB for a second of audio, where 128 float32 mels would be 51 kB.
"""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import soundfile
import soxr

from tiny_audio.audio import containers, flac, foreign, mix, mpeg, riff
from tiny_audio.audio.clip import SAMPLE_RATE

REASONS = ("empty", "not_audio", "truncated", "damaged", "no_samples", "not_finite", "too_long")
TAKEN = "WAV, FLAC, MP3, M4A, MP4, AAC, Ogg, Opus, WebM, AIFF, AU, CAF, W64, AMR, 3GP or MPEG"
MIN_SAMPLES = SAMPLE_RATE // 100  # 10 ms, one mel frame: less is no speech
MP3_FRAME = 1152  # samples that an MP3's header may promise too many
MAX_SAMPLES_PER_S = 8 * 48_000  # over all channels: a small file must not decode to gigabytes
BYTES_PER_SAMPLE = 4  # of the widest audio that is taken: float32
SPARE_BYTES = 2**20  # for headers, tags and a cover picture
SAMPLE_RATES = range(1000, 1_000_000)
BLOCK_SAMPLES = 2**18  # over all channels, read at once
SHORTEST_HEADER = 43  # bytes; of a file that ends in it one cannot tell what it was
MAX_LINKS = 64  # streams that one file may hold end to end
LARGEST_SAMPLE = 2.0**32  # beyond every scale that a float file may have
PLAIN = {  # kinds of file whose headers are made to say what is there
    "aiff": riff.plain_aiff,
    "au": riff.plain_au,
    "caf": riff.plain_caf,
    "flac": flac.exact_header,
    "mp3": mpeg.exact_mp3,
    "nist": riff.plain_nist,
    "w64": riff.plain_w64,
    "wav": riff.plain_wav,
}
NATIVE = (*PLAIN, "ogg")  # that libsndfile reads
LINKS = {
    **containers.LINKS,
    "adts": mpeg.adts_links,
    "mp2": mpeg.mp3_links,
    "mp3": mpeg.mp3_links,
    "wav": riff.wav_links,
}


class AudioError(ValueError):
    """Audio that cannot be used. `reason` is one of `REASONS`, to count by; the message says it to a person."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))


def max_bytes(max_duration_s: float) -> int:
    """The size of the largest file that can hold a clip of this length: 8 channels of float32 at 48 kHz, 47 MB at 30 s."""
    return int(max_duration_s * MAX_SAMPLES_PER_S) * BYTES_PER_SAMPLE + SPARE_BYTES


def _seconds(duration_s: float, limit_s: float) -> str:
    """A duration over a limit, with as many digits as tell it from the limit."""
    digits = next((digits for digits in range(1, 6) if round(duration_s, digits) > limit_s), 6)
    return f"{duration_s:.{digits}f} s"


def _too_long(duration_s: float, limit_s: float) -> AudioError:
    return AudioError("too_long", f"audio lasts {_seconds(duration_s, limit_s)}; the longest taken is {limit_s:g} s")


def _read_native(data: memoryview | bytes, max_duration_s: float) -> tuple[np.ndarray, int]:
    """(S, channels) float32 and the sample rate, as libsndfile reads them; its idea of the length is not relied on."""
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
    """(S, channels) float32, up to where nothing more can be read; S is over `limit` where more is there than that."""
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
    """One stream's samples and sample rate; several where they change on the way."""
    plain = PLAIN[kind](data) if kind in PLAIN else data
    if kind in NATIVE:
        try:
            return [_read_native(plain, max_duration_s)]
        except soundfile.LibsndfileError:
            pass  # a codec that it lacks, or damage that FFmpeg may name
    return foreign.read_foreign(plain, kind, max_duration_s, int(max_duration_s * MAX_SAMPLES_PER_S))


def _kind(data: memoryview) -> str:
    """The kind of file, past an ID3 tag; MP3 and AAC, which have no header, are looked for last."""
    start = mpeg.id3_bytes(data)
    head = bytes(data[start : start + 64 * 1024])
    kind = containers.sniff(head) or mpeg.sniff(head)
    if not kind:
        raise AudioError("not_audio", f"not readable as audio; taken are {TAKEN}")
    return kind


def _links(data: memoryview, kind: str) -> list[memoryview]:
    """The streams that lie end to end in a file, mostly one: each a file that a decoder reads to its end."""
    starts = LINKS[kind](data)[1:] if kind in LINKS else []
    if len(starts) >= MAX_LINKS:
        raise AudioError("damaged", f"the file holds over {MAX_LINKS} streams end to end")
    return [data[start:stop] for start, stop in pairwise([0, *starts, len(data)])]


def _waveform(samples: np.ndarray, rate: int) -> np.ndarray:
    """(S, channels) float32 to (S',) float32 at 16 kHz."""
    if not np.isfinite(samples).all():
        raise AudioError("not_finite", "the audio holds NaN or infinite samples")
    if np.abs(samples).max() > LARGEST_SAMPLE:
        raise AudioError("not_finite", f"the audio holds samples of {np.abs(samples).max():.1e}; full scale is 1")
    mono = mix.to_mono(samples)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def _decode(data: memoryview, max_duration_s: float) -> np.ndarray:
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
    """How long a file lasts by its header, for a person to read; "" where it does not say."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return f"{file.frames / file.samplerate:.0f} s and "
    except (soundfile.LibsndfileError, ValueError):
        return ""


def decode(data: bytes | memoryview, max_duration_s: float = 30.0) -> np.ndarray:
    """Decodes one clip.

    Args:
        data: the bytes of an audio file, any channels and sample rate.
        max_duration_s: longer clips are refused, once so much is decoded; so are files over `max_bytes` of it.

    Returns:
        (S,) int16, mono, 16 kHz.

    Raises:
        AudioError: with its reason. Nothing else is raised, whatever the bytes.
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
    except Exception as error:  # a header that leads its reader astray: the bytes are a stranger's
        raise AudioError("damaged", f"not readable as audio: {error}") from error
