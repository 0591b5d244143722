"""Audio files of every format that is taken, for the tests, made by libsndfile and by PyAV's FFmpeg."""

import io

import av
import numpy as np
import soundfile

RATE = 16_000


def by_libsndfile(samples: np.ndarray, format: str = "WAV", subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def by_ffmpeg(
    pcm: np.ndarray, format: str, codec: str, rate: int = RATE, bit_rate: int | None = None, layout: str = "mono", **options: str
) -> bytes:
    """(S,) int16 at 16 kHz as a file; `options` are the muxer's."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2"})
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        resampler, queue = av.AudioResampler(format=stream.format, layout=layout, rate=rate), av.AudioFifo()
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            queue.write(part)
        while part := queue.read(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return buffer.getvalue()


LIBSNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "wav 8 bit": ("WAV", "PCM_U8"),
    "wav 24 bit": ("WAV", "PCM_24"),
    "wav float": ("WAV", "FLOAT"),
    "wav extensible": ("WAVEX", "PCM_16"),
    "wav mu-law": ("WAV", "ULAW"),
    "wav A-law": ("WAV", "ALAW"),
    "wav MS ADPCM": ("WAV", "MS_ADPCM"),
    "wav IMA ADPCM": ("WAV", "IMA_ADPCM"),
    "wav GSM 6.10": ("WAV", "GSM610"),
    "wav G.721": ("WAV", "G721_32"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aiff float": ("AIFF", "FLOAT"),
    "caf": ("CAF", "PCM_16"),
    "caf alac": ("CAF", "ALAC_16"),
    "au": ("AU", "PCM_16"),
    "au mu-law": ("AU", "ULAW"),
    "nist": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg vorbis": ("OGG", "VORBIS"),
    "ogg opus": ("OGG", "OPUS"),
}
FFMPEG = {
    "wav G.722": ("wav", "g722"),
    "wav G.726": ("wav", "g726", 8000, 32_000),
    "wav mp3": ("wav", "libmp3lame"),
    "m4a": ("ipod", "aac"),
    "mp4": ("mp4", "aac", 48_000),
    "mp4 alac": ("mov", "alac"),
    "webm opus": ("webm", "libopus", 48_000),
    "matroska vorbis": ("matroska", "vorbis", 44_100, None, "stereo"),
    "aac": ("adts", "aac"),
    "amr": ("amr", "libopencore_amrnb", 8000, 12_200),
    "3gp": ("3gp", "libopencore_amrnb", 8000, 12_200),
    "mpga": ("mp2", "mp2"),
    "mpeg": ("mpeg", "mp2", 48_000),
    "mpegts": ("mpegts", "aac", 48_000),
}


SPECIAL = {
    "webm as browsers record it": lambda pcm: by_ffmpeg(pcm, "webm", "libopus", 48_000, live="1"),
    "mp4 in fragments": lambda pcm: by_ffmpeg(pcm, "mp4", "aac", 48_000, movflags="frag_keyframe+empty_moov"),
    "mp3 without a tag": lambda pcm: by_ffmpeg(pcm, "mp3", "libmp3lame", bit_rate=32_000, write_xing="0"),
}
FORMATS = (*LIBSNDFILE, *FFMPEG, *SPECIAL)


def encode(pcm: np.ndarray, name: str) -> bytes:
    """(S,) int16 at 16 kHz as a file in one of FORMATS."""
    if name in LIBSNDFILE:
        return by_libsndfile(pcm / 32768, *LIBSNDFILE[name], rate=8000 if "GSM" in name or "G.7" in name else RATE)
    return by_ffmpeg(pcm, *FFMPEG[name]) if name in FFMPEG else SPECIAL[name](pcm)
