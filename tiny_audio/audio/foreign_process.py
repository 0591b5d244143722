"""Runs as the process behind `foreign`, and decodes one file after another with FFmpeg for the socket on its standard input.

It asks for the bytes that FFmpeg wants, and answers with blocks of samples, so it holds no file and no recording whole. It is a
script that imports none of our modules. Once FFmpeg is loaded, it can open no more files or sockets and start no
processes, whatever a file asks for. Its memory and CPU time are limited too.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import struct
from contextlib import suppress

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
HEAD = struct.Struct(">16sQdQd")  # what the parent begins with: demuxer, bytes, longest duration, most samples, CPU seconds
MESSAGE = struct.Struct(">cQ")  # what goes before each message of ours: its kind and its length
WANTED, SOUND, DONE, REFUSED = b"?", b"~", b"+", b"-"
RANGE, BLOCK = struct.Struct(">QQ"), struct.Struct(">III")  # of WANTED: position, bytes; of SOUND: number, rate, channels
BLOCK_BYTES, READ_BYTES = 2**20, 2**18


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


def _send(connection: socket.socket, kind: bytes, *parts: bytes | bytearray) -> None:
    connection.sendall(MESSAGE.pack(kind, sum(map(len, parts))))
    for part in parts:
        connection.sendall(part)


class _RemoteFile(io.RawIOBase):
    """Represents the file, whose bytes the parent holds."""

    def __init__(self, connection: socket.socket, size: int):
        self.connection, self.size, self.position = connection, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence])
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, target: memoryview) -> int:
        size = max(0, min(len(target), self.size - self.position))
        if size:
            _send(self.connection, WANTED, RANGE.pack(self.position, size))
            target[:size] = _receive(self.connection, size)
            self.position += size
        return size


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


class _Blocks:
    """Collects samples of one format, and sends them on in blocks."""

    def __init__(self, connection: socket.socket):
        self.connection, self.format, self.number = connection, None, -1
        self.samples = bytearray()

    def add(self, frame: av.AudioFrame) -> None:
        channels = frame.layout.nb_channels
        if self.format != (frame.sample_rate, frame.layout.name, frame.format.name):
            self.send()
            self.format, self.number = (frame.sample_rate, frame.layout.name, frame.format.name), self.number + 1
            self.head = BLOCK.pack(self.number, frame.sample_rate, channels)
            self.resampler = AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        for packed in self.resampler.resample(frame):
            self.samples.extend(memoryview(packed.planes[0])[: 4 * packed.samples * channels])
        if len(self.samples) >= BLOCK_BYTES:
            self.send()

    def send(self) -> None:
        if self.samples:
            _send(self.connection, SOUND, self.head, self.samples)
            self.samples = bytearray()


def decode(file: io.BufferedReader, demuxer: str, max_duration_s: float, max_samples: int, blocks: _Blocks) -> None:
    """Decodes a file to blocks of sample rate, channels and float32 samples; their number changes with their format."""
    seconds, total = 0.0, 0
    options = {"codec_whitelist": DECODERS, "protocol_whitelist": ""}
    with av.open(file, format=demuxer, options=options) as container:
        stream = _audio_stream(container)
        stream.codec_context.thread_count = 1
        for frame in _frames(container, stream):
            channels = frame.layout.nb_channels
            seconds, total = seconds + frame.samples / max(1, frame.sample_rate), total + frame.samples * channels
            if seconds > max_duration_s:
                raise Refusal(f"too_long audio lasts over {max_duration_s:g} s, the longest taken")
            if total > max_samples:
                raise Refusal(f"too_long {channels} channels at {frame.sample_rate} Hz are more than is decoded")
            blocks.add(frame)
        blocks.send()


def _answer(connection: socket.socket, size: int, demuxer: str, max_duration_s: float, max_samples: int) -> None:
    file = io.BufferedReader(_RemoteFile(connection, size), READ_BYTES)
    try:
        decode(file, demuxer, max_duration_s, max_samples, _Blocks(connection))
    except Refusal as refusal:
        _send(connection, REFUSED, str(refusal).encode())
    except MemoryError:
        _send(connection, REFUSED, b"damaged decoding the file takes too much memory")
    except Exception as error:  # FFmpeg's errors, and PyAV's on a hostile file
        if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
            raise  # the parent is gone
        _send(connection, REFUSED, f"damaged its sound cannot be decoded ({type(error).__name__})".encode())
    else:
        _send(connection, DONE)


def _load_all() -> None:
    """Decodes a sound and a piece of text, to import all modules on the way while files can still be opened."""
    tone = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 196, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 160)
    for data in (tone + bytes(160), b"no sound"):
        ours, theirs = socket.socketpair()
        with ours, theirs, suppress(av.error.FFmpegError):
            decode(io.BufferedReader(io.BytesIO(data)), "wav", 1.0, 1000, _Blocks(ours))


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
        connection.settimeout(None)
        _answer(connection, size, demuxer.rstrip(b"\0").decode(), max_duration_s, max_samples)


if __name__ == "__main__":
    main()
