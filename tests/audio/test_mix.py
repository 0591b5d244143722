"""Sound as people record it."""

import numpy as np
import pytest

from tests.audio.encode import by_libsndfile
from tests.audio.fuzz import speech_like
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.audio.mix import is_silent

PCM = speech_like(1.0)
WAVEFORM = PCM / np.float32(32768)
NOTHING = np.zeros_like(PCM)


def stereo(*channels: np.ndarray) -> bytes:
    return by_libsndfile(np.stack(channels, axis=1))


def as_float(waveform: np.ndarray) -> bytes:
    return by_libsndfile(waveform.astype(np.float32), subtype="FLOAT")


@pytest.mark.parametrize(
    "data",
    [
        stereo(PCM, PCM),
        stereo(PCM, -PCM),  # a microphone with a wire crossed
        stereo(PCM, (-0.9 * PCM).astype(np.int16)),
        stereo(PCM, NOTHING),
        stereo(NOTHING, NOTHING, PCM, NOTHING, NOTHING, NOTHING),  # 5.1, the voice in the centre
        by_libsndfile(WAVEFORM, subtype="PCM_24"),
        as_float(WAVEFORM),
        as_float(WAVEFORM * 32768),
    ],
    ids=["identical", "inverted", "inverted and quieter", "one dead", "5.1", "24 bit", "float", "float of int16's scale"],
)
def test_the_voice_is_heard_as_it_was(data):
    assert (decode(data) == PCM).all()


def test_two_voices_are_both_heard():
    other = PCM[::-1].copy()
    assert np.abs(decode(stereo(PCM, other)) - (PCM.astype(float) + other) / 2).max() <= 1


def test_a_large_offset_is_removed():
    decoded = decode(as_float(WAVEFORM + 0.5)).astype(float)
    assert abs(decoded.mean()) < 1
    assert np.corrcoef(decoded, PCM)[0, 1] > 0.999


@pytest.mark.parametrize("level", [1e-2, 1e-3])
def test_a_faint_voice_is_raised_before_it_is_rounded(level):
    decoded = decode(as_float(WAVEFORM * level)).astype(float)
    assert np.abs(decoded).max() == pytest.approx(0.08 * 32768, rel=0.01)
    assert np.corrcoef(decoded, PCM)[0, 1] > 0.9999


def test_a_float_file_beyond_any_scale_is_heard_at_full_scale_or_refused():
    assert np.corrcoef(decode(as_float(WAVEFORM * 10)), PCM)[0, 1] > 0.9999
    with pytest.raises(AudioError, match="full scale is 1") as caught:
        decode(as_float(WAVEFORM * 1e20))
    assert caught.value.reason == "not_finite"


def test_overshoot_is_clipped_and_not_scaled():
    decoded = decode(as_float(WAVEFORM / np.abs(WAVEFORM).max() * 1.5))
    assert np.abs(decoded.astype(int)).max() >= 32767
    assert np.median(np.abs(decoded)) > 1.4 * np.median(np.abs(PCM)) * 32768 / np.abs(PCM).max()


def test_digital_silence_is_silent_and_faint_sound_is_not():
    assert is_silent(decode(stereo(NOTHING, NOTHING)))
    assert is_silent(decode(as_float(np.full(16_000, 0.3))))  # an offset alone
    assert is_silent(decode(by_libsndfile(NOTHING + np.arange(16_000, dtype=np.int16) % 2)))  # dither
    assert not is_silent(decode(by_libsndfile((PCM * 1e-3).astype(np.int16))))


@pytest.mark.parametrize("decibels", range(-90, -50, 5))
def test_a_voice_at_any_level_is_raised_or_silence(decibels):
    decoded = decode(as_float(WAVEFORM * 10 ** (decibels / 20)))
    assert is_silent(decoded) or np.abs(decoded).max() > 0.07 * 32768
