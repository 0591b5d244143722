"""Audio bytes to mono 16 kHz PCM, or a reason why not. Runs on CPU nodes and in the HTTP ingress; knows nothing of Ray.

libsndfile reads WAV, FLAC, MP3, Ogg and Opus; soxr resamples. int16 travels on from here: 32 kB for a second of audio,
where 128 float32 mels would be 51 kB.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
import soxr

from tiny_audio.audio.clip import SAMPLE_RATE

MIN_SAMPLES = SAMPLE_RATE // 100  # 10 ms, one mel frame: less is no speech
MP3_FRAME = 1152  # samples that an MP3's header may promise too many
MAX_SAMPLES_PER_S = 8 * 48_000  # over all channels: a small file must not decode to gigabytes
BYTES_PER_SAMPLE = 4  # of the widest audio that is taken: float32
SPARE_BYTES = 2**20  # for headers, tags and a cover picture
REASONS = ("empty", "not_audio", "truncated", "no_samples", "not_finite", "too_long")
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what a WAV written to a pipe says of its length


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


def _missing_wav_bytes(data: bytes | memoryview) -> int:
    """How many bytes the data chunk of a RIFF WAV promises beyond the file's end; 0 for other formats."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        if name == b"data":
            return 0 if size in _UNKNOWN_SIZES else max(0, position + 8 + size - len(data))
        position += 8 + size + size % 2
    return 0


def _read(data: bytes | memoryview, max_duration_s: float) -> tuple[np.ndarray, int]:
    """(S, channels) float32 and its sample rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            duration_s = file.frames / file.samplerate
            if duration_s > max_duration_s:
                raise AudioError("too_long", f"audio lasts {duration_s:.1f} s; the longest taken is {max_duration_s:g} s")
            if file.frames * file.channels > max_duration_s * MAX_SAMPLES_PER_S:
                raise AudioError("too_long", f"{file.channels} channels at {file.samplerate} Hz are more than is decoded")
            samples = file.read(dtype="float32", always_2d=True)
            if len(samples) < file.frames - MP3_FRAME:
                raise AudioError("truncated", f"audio ends after {len(samples)} of {file.frames} samples")
            return samples, file.samplerate
    except soundfile.LibsndfileError as error:
        known = data[:4] in (b"RIFF", b"fLaC", b"OggS", b"FORM")
        raise AudioError(
            "truncated" if known and len(data) > 44 else "not_audio", f"not readable as audio: {error.error_string}"
        ) from None


def decode(data: bytes | memoryview, max_duration_s: float = 30.0) -> np.ndarray:
    """Decodes one clip.

    Args:
        data: the bytes of an audio file, any channels and sample rate.
        max_duration_s: longer clips are refused, before they are decoded; so are files over `max_bytes` of it.

    Returns:
        (S,) int16, mono, 16 kHz.

    Raises:
        AudioError: with its reason.
    """
    if not data:
        raise AudioError("empty", "the audio is empty (0 bytes)")
    if len(data) > max_bytes(max_duration_s):
        raise AudioError(
            "too_long", f"the file has {len(data)} bytes; the most for {max_duration_s:g} s is {max_bytes(max_duration_s)}"
        )
    missing = _missing_wav_bytes(data)
    if missing:
        raise AudioError("truncated", f"the WAV file is cut short: {missing} bytes are missing")
    samples, rate = _read(data, max_duration_s)
    if len(samples) * SAMPLE_RATE < MIN_SAMPLES * rate:
        raise AudioError("no_samples", f"the audio holds {len(samples)} samples, too few to hear anything")
    if not np.isfinite(samples).all():
        raise AudioError("not_finite", "the audio holds NaN or infinite samples")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
