"""A recording read in pieces is the clip that `decode` makes of it, and is refused for the same reasons, before any piece."""

import io
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from tests.audio.encode import by_libsndfile, encode
from tests.audio.fuzz import speech_like
from tests.conftest import ROOT
from tiny_audio.audio import foreign, recording
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.audio.recording import open_recording

PCM = speech_like(9.0)
OTHER = np.roll(PCM, 4000)
STEREO = np.stack([PCM, OTHER], axis=1)


def read(data: bytes, max_duration_s: float = 60.0) -> np.ndarray:
    with open_recording(io.BytesIO(data), max_duration_s) as found:
        pieces = list(found.chunks())
        assert found.duration_s == pytest.approx(sum(map(len, pieces)) / 16_000, abs=1e-3)
        return np.concatenate(pieces)


@pytest.mark.parametrize(
    "data",
    [
        by_libsndfile(PCM),
        by_libsndfile(STEREO, rate=44_100),
        by_libsndfile(np.stack([PCM, -PCM, np.zeros_like(PCM)], axis=1), rate=48_000),
        by_libsndfile((STEREO / np.float32(32768) * 1e-3).astype(np.float32), subtype="FLOAT"),
        by_libsndfile((STEREO * np.float32(3) + 20_000).astype(np.float32), subtype="FLOAT"),
        encode(PCM, "m4a"),
        encode(PCM, "flac"),
        by_libsndfile(PCM[:32_000], rate=8000) + by_libsndfile(STEREO),
    ],
    ids=["mono", "stereo", "inverted", "faint", "offset and large", "m4a", "flac", "end to end"],
)
def test_pieces_are_the_clip(data, monkeypatch):
    monkeypatch.setattr("tiny_audio.audio.decode.BLOCK_SAMPLES", 2**14)
    whole, pieces = decode(data), read(data)
    assert len(whole) == len(pieces)
    assert np.abs(whole.astype(int) - pieces).max() <= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no audio at all, but a text", "not_audio"),
        (by_libsndfile(PCM)[:-20_000], "truncated"),
        (encode(PCM, "m4a")[:-9000], "truncated"),
        (by_libsndfile(np.full(16_000, np.nan, np.float32), subtype="FLOAT"), "not_finite"),
        (by_libsndfile(np.tile(PCM, 8)), "too_long"),
    ],
    ids=["empty", "not_audio", "truncated", "m4a truncated", "not_finite", "too_long"],
)
def test_what_is_refused_is_refused_before_any_piece(data, reason):
    with pytest.raises(AudioError) as caught, open_recording(io.BytesIO(data), 60.0):
        raise AssertionError
    assert caught.value.reason == reason


def test_a_recording_that_is_left_halfway_keeps_no_process(monkeypatch):
    monkeypatch.setattr(foreign, "_idle", [])
    data = encode(np.tile(PCM, 20), "m4a")
    with open_recording(io.BytesIO(data), 600.0) as found:
        pieces = found.chunks()
        next(pieces)
        assert foreign._idle == []
        pieces.close()
        assert foreign._idle == []
        assert len(decode(encode(PCM, "m4a"))) > 100_000


def test_recordings_that_are_read_slowly_hold_up_no_other(monkeypatch):
    monkeypatch.setattr(foreign, "_slots", threading.BoundedSemaphore(1))
    data = encode(np.tile(PCM, 4), "m4a")
    with open_recording(io.BytesIO(data), 60.0) as one, open_recording(io.BytesIO(data), 60.0) as other:
        slow = one.chunks(), other.chunks()
        assert all(len(next(pieces)) for pieces in slow)
        assert len(decode(data, 60.0)) > 500_000


def test_a_large_file_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "IN_MEMORY_BYTES", 1000)
    (tmp_path / "a.wav").write_bytes(by_libsndfile(STEREO))
    with open_recording(tmp_path / "a.wav", 60.0) as found:
        assert np.array_equal(np.concatenate(list(found.chunks())), decode(by_libsndfile(STEREO)))


def test_a_long_recording_takes_no_more_memory_than_a_short_one(tmp_path):
    """Ten minutes of 48 kHz stereo are 115 MB as a WAV, and 230 MB as float32; the file is sparse."""
    code = """
        import resource, sys
        from tiny_audio.audio.recording import open_recording
        used = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) // 1024
        with open_recording(sys.argv[1], 7200.0) as found:
            before = used()
            for number, chunk in enumerate(found.chunks()):
                if number % 50 == 0:
                    before = max(before, used())
        print(found.duration_s, before)
    """
    wav = by_libsndfile(STEREO[:1], rate=48_000)
    size = 600 * 48_000 * 4
    with (tmp_path / "a.wav").open("wb") as file:
        file.write(wav[:4] + (36 + size).to_bytes(4, "little") + wav[8:40] + size.to_bytes(4, "little"))
        file.truncate(44 + size)
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.wav")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    duration_s, used_mib = map(float, run.stdout.split())
    assert round(duration_s) == 600
    assert used_mib < 100
