"""Runs as the process behind `foreign`, and decodes one file after another with FFmpeg from a socket on its standard input.

It is a script that imports none of our modules. Once FFmpeg is loaded, it can open no more files or sockets and start no
processes, whatever a file asks for. Its memory and CPU time are limited too.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import struct

import av
from av.audio.resampler import AudioResampler

DECODERS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,adpcm_yamaha,alac,amrnb,amrwb,eac3,flac,g722,g723_1,g726,"
    "g726le,g729,gsm,gsm_ms,ilbc,mp1,mp1float,mp2,mp2float,mp3,mp3float,opus,libopus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,"
    "pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,qcelp,speex,vorbis"
)
SPARE_BYTES = 2**30  # address space beyond the initial use
IDLE_S = 60.0
MAX_FILES = 1000  # lifetime of a process: a bound on FFmpeg's possible leaks
MAX_BAD_PACKETS = 0.02  # share of all packets: possible errors at the first and last
HEAD = struct.Struct(">16sQdQd")


class Refusal(Exception):
    """Reports a file that is not decoded; its text is the reason, a space and the message."""


def _limit() -> None:
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # only the three standard streams, already open


def _limit_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, resource.RLIM_INFINITY))


def _receive(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if not received:
            os._exit(0)  # end of the parent's connection
        view = view[received:]
    return data


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream:
    streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
    if not streams:
        raise Refusal("not_audio the file holds no sound that can be decoded")
    if len(streams) > 1:
        raise Refusal(f"not_audio the file holds {len(streams)} audio tracks; leave one of them in it")
    if streams[0].codec_context.name not in DECODERS.split(","):
        raise Refusal(f"not_audio its sound is coded as {streams[0].codec_context.name}, which is not taken")
    return streams[0]


def _frames(container: av.container.InputContainer, stream: av.AudioStream):
    """Yields every frame of the stream, and raises Refusal if too many packets cannot be decoded."""
    packets, bad = 0, 0
    for packet in container.demux(stream):
        packets += 1
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            bad += packet.size > 0
    if bad > 1 + MAX_BAD_PACKETS * packets:
        raise Refusal(f"damaged {bad} of {packets} packets cannot be decoded")


def decode(data: bytearray, demuxer: str, max_duration_s: float, max_samples: int) -> list[bytes]:
    """Decodes a file to sample rate, channels, number of samples and float32 samples, repeated at each change of format."""
    parts, current, seconds, total = [], None, 0.0, 0
    options = {"codec_whitelist": DECODERS, "protocol_whitelist": ""}
    with av.open(io.BytesIO(data), format=demuxer, options=options) as container:
        stream = _audio_stream(container)
        stream.codec_context.thread_count = 1
        for frame in _frames(container, stream):
            channels = frame.layout.nb_channels
            seconds, total = seconds + frame.samples / max(1, frame.sample_rate), total + frame.samples * channels
            if seconds > max_duration_s:
                raise Refusal(f"too_long audio lasts over {max_duration_s:g} s, the longest taken")
            if total > max_samples:
                raise Refusal(f"too_long {channels} channels at {frame.sample_rate} Hz are more than is decoded")
            if current != (frame.sample_rate, frame.layout.name, frame.format.name):
                current = (frame.sample_rate, frame.layout.name, frame.format.name)
                resampler = AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
                parts.append((frame.sample_rate, channels, bytearray()))
            for packed in resampler.resample(frame):
                parts[-1][2].extend(memoryview(packed.planes[0])[: 4 * packed.samples * channels])
    return [struct.pack(">IIQ", rate, count, len(samples) // (4 * count)) + samples for rate, count, samples in parts]


def _answer(data: bytearray, demuxer: str, max_duration_s: float, max_samples: int) -> list[bytes]:
    try:
        return [b"+", *decode(data, demuxer, max_duration_s, max_samples)]
    except Refusal as refusal:
        return [b"-", str(refusal).encode()]
    except MemoryError:
        return [b"-", b"damaged decoding the file takes too much memory"]
    except Exception as error:  # FFmpeg's errors, and PyAV's on a hostile file
        return [b"-", f"damaged its sound cannot be decoded ({type(error).__name__})".encode()]


def _load_all() -> None:
    """Decodes a sound and a piece of text, to import all modules on the way while files can still be opened."""
    tone = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 196, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 160)
    for data in (tone + bytes(160), b"no sound"):
        _answer(bytearray(data), "wav", 1.0, 1000)


def main() -> None:
    connection = socket.socket(fileno=0)
    av.logging.set_level(None)
    _load_all()
    _limit()
    for _ in range(MAX_FILES):
        connection.settimeout(IDLE_S)
        try:
            head = _receive(connection, HEAD.size)
        except TimeoutError:
            return
        demuxer, size, max_duration_s, max_samples, limit_s = HEAD.unpack(head)
        _limit_cpu(limit_s)
        status, *parts = _answer(_receive(connection, size), demuxer.rstrip(b"\0").decode(), max_duration_s, max_samples)
        connection.settimeout(None)
        connection.sendall(status + struct.pack(">Q", sum(map(len, parts))))
        for part in parts:
            connection.sendall(part)


if __name__ == "__main__":
    main()
