"""Whole files whose headers say otherwise are decoded, cut ones are refused, and streams end to end are all heard."""

import struct

import numpy as np
import pytest

from tests.audio.encode import FORMATS, by_ffmpeg, by_libsndfile, encode
from tests.audio.fuzz import speech_like
from tiny_audio.audio import mpeg
from tiny_audio.audio.decode import AudioError, decode

PCM = speech_like(1.0)
WAV, FLAC, MP3 = (encode(PCM, name) for name in ("wav", "flac", "mp3"))
DELAY = 2400  # samples that a codec may add: an encoder's delay and padding


def patched(data: bytes, position: int, new: bytes) -> bytes:
    return data[:position] + new + data[position + len(new) :]


def reason(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        decode(data, 8.0)
    return caught.value.reason


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_clip_and_half_of_it_is_refused(name):
    data = encode(PCM, name)
    decoded = decode(data, 8.0)
    rate = 2 if "GSM" in name or name == "wav G.721" else 1  # those are encoded as if at 8 kHz
    assert abs(len(decoded) - rate * len(PCM)) <= DELAY
    if rate == 1:
        correlation = np.correlate(decoded.astype(float), PCM[4000:12000].astype(float))
        norm = np.linalg.norm(PCM[4000:12000].astype(float)) ** 2
        assert correlation.max() / norm > (0.2 if name in ("amr", "3gp") else 0.5), "those two code voices, and this is noise"
    if name != "mpeg":  # made of packets of 2 KiB, and nothing says how many
        assert reason(data[: len(data) // 2 + 1]) == "truncated"


@pytest.mark.parametrize(
    "size",
    [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFFFE, 0x7FFFF000, 0x80000000, 0xFFFFFFDB, 0x3FFFFFFF, 32_036, 32_044, 32_037, 1000],
)
def test_a_wav_is_read_to_its_end_whatever_size_its_writer_left(size):
    assert (decode(patched(WAV, 40, struct.pack("<I", size)), 8.0) == PCM).all()


@pytest.mark.parametrize("junk", [b"LIST\5\0\0\0abcde", b"LIST\5\0\0\0abcde\0", b"junk\3\0\0\0abc\0"])
def test_chunks_of_odd_length_are_passed_with_and_without_padding(junk):
    assert (decode(WAV[:36] + junk + WAV[36:], 8.0) == PCM).all()


def test_what_follows_the_samples_is_no_sound():
    for tail in (b"LIST\4\0\0\0abcd", b"TAG" + bytes(125), b"\1"):
        assert (decode(WAV + tail, 8.0) == PCM).all()


def test_wavs_relatives_are_read_to_their_end():
    aiff, au, caf = (encode(PCM, name) for name in ("aiff", "au", "caf"))
    sound, data = aiff.find(b"SSND"), caf.find(b"data")
    unset = patched(patched(aiff, sound + 4, bytes(4)), 22, bytes(4))  # no chunk size, no number of frames
    w64 = encode(PCM, "w64")
    unset_w64 = patched(w64, w64.find(b"data", 40) + 16, bytes(8))
    for file in (unset, unset_w64, patched(au, 8, b"\xff" * 4), patched(au, 8, bytes(4)), patched(caf, data + 4, b"\xff" * 8)):
        assert (decode(file, 8.0) == PCM).all()


@pytest.mark.parametrize("promised", [0, 100, 10**6, len(PCM) - 500])
def test_a_flac_is_read_to_its_last_frame_whatever_its_header_says(promised):
    upper = FLAC[21] & 0xF0
    file = patched(FLAC, 21, bytes([upper]) + promised.to_bytes(4, "big"))
    assert (decode(file, 8.0) == PCM).all()
    assert reason(file[: len(file) // 2]) == "truncated"


def test_an_mp3s_guessed_length_is_not_relied_on():
    loud, quiet = (by_ffmpeg(PCM, "mp3", "libmp3lame", bit_rate=rate, write_xing="0") for rate in (160_000, 16_000))
    for file in (loud + quiet, quiet + loud):
        assert abs(len(decode(file, 8.0)) - 2 * len(PCM)) <= 2 * DELAY
    first, *others = (position for position, _ in mpeg._mp3_frames(memoryview(MP3)))
    tag = MP3.find(b"Xing") + 8 if b"Xing" in MP3 else MP3.find(b"Info") + 8
    assert first < tag < others[0]
    assert abs(len(decode(patched(MP3, tag, struct.pack(">I", 3)), 8.0)) - len(PCM)) <= DELAY
    assert reason(patched(MP3, tag, struct.pack(">I", 500))) == "truncated"


CHAINED = ["wav", "rf64", "w64", "aiff", "caf", "au", "flac", "mp3", "ogg vorbis", "ogg opus", "m4a", "webm opus", "aac", "amr"]


@pytest.mark.parametrize("name", CHAINED)
def test_streams_end_to_end_are_all_heard(name):
    once = encode(PCM, name)
    assert len(decode(once + once, 8.0)) == pytest.approx(2 * len(decode(once, 8.0)), abs=2 * DELAY)


def test_streams_of_different_rates_are_heard_as_one():
    chained = encode(PCM, "ogg vorbis") + by_libsndfile(np.repeat(PCM, 2) / 32768, "OGG", "VORBIS", 32_000)
    assert len(decode(chained, 8.0)) == pytest.approx(2 * len(PCM), abs=10)


def test_too_many_streams_are_refused():
    assert reason(by_libsndfile(PCM[:200], "FLAC") * 100) == "damaged"


def test_a_lost_ogg_page_is_told():
    data = encode(speech_like(6.0), "ogg vorbis")
    pages = [position for position in range(len(data)) if data[position : position + 4] == b"OggS"]
    assert reason(data[: pages[-2]] + data[pages[-1] :]) == "truncated"


def test_two_tracks_are_refused_and_not_one_of_them_heard(tmp_path):
    import av

    with av.open(str(tmp_path / "two.mka"), "w", format="matroska") as container:
        for _ in range(2):
            container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for stream in container.streams:
            frame = av.AudioFrame.from_ndarray(PCM.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
    one, other = (encode(pcm, "ogg vorbis") for pcm in (PCM, PCM[::-1].copy()))
    for file in ((tmp_path / "two.mka").read_bytes(), one[:58] + other[:58] + one[58:] + other[58:]):  # 58: the first page
        with pytest.raises(AudioError, match="2 audio tracks"):
            decode(file, 8.0)


def test_sound_in_two_chunks_of_a_wav_is_refused_and_not_half_of_it_heard():
    with pytest.raises(AudioError, match="2 data chunks"):
        decode(WAV + WAV[36:], 8.0)


@pytest.mark.parametrize("name", ["wav", "aiff", "flac", "mp3", "ogg vorbis", "m4a"])
def test_a_tag_before_any_kind_of_file_is_passed(name):
    tag = b"ID3\4\0\0\0\0\x01\0" + bytes(128)
    assert (decode(tag + tag + encode(PCM, name), 8.0) == decode(encode(PCM, name), 8.0)).all()


@pytest.mark.parametrize(("num_samples", "seconds"), [(128_160, "8.01 s"), (128_001, "8.0001 s"), (160_000, "10.0 s")])
def test_a_length_over_the_limit_is_told_apart_from_it(num_samples, seconds):
    with pytest.raises(AudioError, match=f"lasts {seconds}; the longest taken is 8 s"):
        decode(by_libsndfile(np.zeros(num_samples, np.int16)), 8.0)


def test_a_large_file_is_refused_in_seconds():
    with pytest.raises(AudioError, match="655 s"):
        decode(by_libsndfile(np.zeros(10 * 2**20, np.int16)), 8.0)


def test_the_refusal_of_another_format_names_what_is_taken():
    with pytest.raises(AudioError, match=r"taken are WAV, FLAC, MP3, M4A.*WebM"):
        decode(b"%PDF-1.7 and so on" * 10)
