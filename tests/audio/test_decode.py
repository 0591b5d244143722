import io
import pickle

import numpy as np
import pytest
import soundfile

from tests.conftest import tone
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.lab.synthetic.dataset import ENCODINGS, break_audio, encode_audio


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_the_same_clip(encoding):
    clip = tone(1.0)
    decoded = decode(encode_audio(clip, encoding))
    assert decoded.dtype == np.int16
    assert abs(len(decoded) - len(clip)) <= 1200  # an MP3 encoder pads
    spectrum = np.abs(np.fft.rfft(decoded[:16000].astype(float)))
    assert spectrum.argmax() * 16000 / len(decoded[:16000]) == pytest.approx(440, abs=2)
    assert np.abs(decoded).max() == pytest.approx(8000, rel=0.05)


def test_pcm16_survives_bit_for_bit():
    clip = tone(0.3, 1000)
    assert (decode(encode_audio(clip, "wav")) == clip).all()
    assert (decode(encode_audio(clip, "flac")) == clip).all()


@pytest.mark.parametrize("reason", ["empty", "not_audio", "truncated", "no_samples", "not_finite", "too_long"])
def test_broken_audio_is_refused_with_its_reason(reason):
    with pytest.raises(AudioError) as caught:
        decode(break_audio(tone(2.0), reason))
    assert caught.value.reason == reason
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason  # Ray moves errors between processes


def test_a_truncated_flac_is_refused(tmp_path):
    data = encode_audio(tone(3.0, 3000), "flac")
    with pytest.raises(AudioError) as caught:
        decode(data[: len(data) // 2])
    assert caught.value.reason == "truncated"


def test_a_truncated_mp3_is_refused():
    data = encode_audio(tone(5.0), "mp3")
    with pytest.raises(AudioError) as caught:
        decode(data[: len(data) // 2])
    assert caught.value.reason == "truncated"


def test_a_small_file_of_many_samples_is_not_decoded():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((655_350, 8), np.int16), 655_350, format="FLAC")
    with pytest.raises(AudioError, match="8 channels at 655350 Hz"):
        decode(buffer.getvalue(), max_duration_s=8.0)


def test_a_wav_of_unknown_length_is_read(tmp_path):
    """ffmpeg to a pipe writes 0xFFFFFFFF for the sizes that it does not know yet."""
    data = bytearray(encode_audio(tone(1.0), "wav"))
    data[4:8] = data[40:44] = b"\xff" * 4
    assert len(decode(bytes(data))) == 16000


def test_the_longest_clip_is_taken_and_a_longer_one_is_not(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.zeros(16000 * 8, np.int16), 16000)
    assert len(decode(path.read_bytes(), max_duration_s=8.0)) == 128_000
    with pytest.raises(AudioError, match=r"8\.0 s; the longest taken is 7\.9 s"):
        decode(path.read_bytes(), max_duration_s=7.9)
