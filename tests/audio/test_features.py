import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from tests.conftest import tone
from tiny_audio.audio.clip import num_audio_tokens, padded_num_samples
from tiny_audio.audio.features import estimated_num_samples, log_mel, pad_waveforms


def test_equals_whispers_own_features():
    extractor = WhisperFeatureExtractor(feature_size=128)
    clip = tone(2.0).astype(np.float32) / 32768
    theirs = extractor(clip, sampling_rate=16000, return_tensors="pt").input_features
    ours = log_mel(pad_waveforms([torch.from_numpy(clip)], 480_000), 128)
    assert (theirs - ours).abs().max() < 1e-4
    assert (ours - log_mel(pad_waveforms([torch.from_numpy(tone(2.0))], 480_000), 128)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("num_samples", "frames_per_token", "tokens"),
    [(1, 2, 1), (640, 2, 1), (641, 2, 2), (16_000, 2, 25), (480_000, 2, 750), (480_000, 4, 375), (1281, 4, 2), (480_000, 7, 215)],
)
def test_the_length_formula(num_samples, frames_per_token, tokens):
    assert num_audio_tokens(num_samples, frames_per_token) == tokens
    assert num_audio_tokens(torch.tensor([num_samples]), frames_per_token).tolist() == [tokens]


def test_a_clips_features_do_not_depend_on_its_padding():
    clip = torch.from_numpy(tone(1.23))
    short = padded_num_samples(len(clip), 480_000, trimmed=True, frames_per_token=2)
    ours = log_mel(pad_waveforms([clip], short), 128)
    full = log_mel(pad_waveforms([clip], 480_000), 128)
    assert short < 22_000
    assert padded_num_samples(len(clip), 480_000, trimmed=False, frames_per_token=2) == 480_000
    torch.testing.assert_close(ours, full[..., : ours.shape[-1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("duration_s", [0.1, 1.0, 3.337, 29.0])
def test_a_lost_length_is_found_again_to_a_frame(duration_s):
    clip = tone(duration_s)
    found = estimated_num_samples(log_mel(pad_waveforms([torch.from_numpy(clip)], 480_000), 128))
    assert abs(int(found) - len(clip)) <= 160
