"""The detector is Silero's network, stream by stream; silence and noise are no speech, and made speech is."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import tone
from tiny_audio.audio import vad
from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.vad import FRAME_SAMPLES, StreamState, speech_detector
from tiny_audio.audio.windows import has_speech
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize

SENTENCE = "the old baker carried seven lemons past a quiet river"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return synthesize(SENTENCE, held_out_voices()[0], random.Random(0))


def original() -> torch.jit.ScriptModule:
    """Silero's own network, with the weights of its safetensors file: its TorchScript file holds others."""
    folder = Path(vad.importlib.util.find_spec("silero_vad").origin).with_name("data")
    network, weights = torch.jit.load(folder / "silero_vad.jit"), load_file(folder / "silero_vad_16k.safetensors")
    names = {"stft.forward_basis_buffer": "stft_conv.weight", "decoder.decoder.2": "final_conv", "decoder.rnn": "lstm_cell"}
    names |= {f"encoder.{number}.reparam_conv": f"conv{number + 1}" for number in range(4)}
    state = network.state_dict()
    for theirs, ours in names.items():
        for name in [name for name in state if name.startswith(f"_model.{theirs}")]:
            state[name].copy_(weights[name.replace(f"_model.{theirs}", ours)])
    return network


def test_the_detector_equals_the_original_on_streams_side_by_side(speech):
    num_frames = len(speech) // FRAME_SAMPLES
    loud = speech[: num_frames * FRAME_SAMPLES]
    streams = np.stack([loud, np.random.default_rng(0).integers(-300, 300, len(loud), np.int16), loud[::-1] // 2])
    network, expected = original(), []
    with torch.no_grad():
        for stream in streams:
            network.reset_states()
            frames = torch.from_numpy(stream.astype(np.float32) / 32768).split(FRAME_SAMPLES)
            expected.append([network(frame, 16000).item() for frame in frames])
    first, state = speech_detector()(streams[:, : 7 * FRAME_SAMPLES], StreamState.start(3))
    rest, _ = speech_detector()(streams[:, 7 * FRAME_SAMPLES :], state)
    assert np.abs(np.concatenate([first, rest], axis=1) - expected).max() < 1e-4
    assert np.ptp(expected) > 0.9


def test_silence_noise_and_tones_are_no_speech_and_speech_is(speech):
    noise = np.random.default_rng(0).standard_normal(160_000)
    brown = np.cumsum(noise) - np.cumsum(noise).mean()
    others = (np.zeros(160_000), 30 * noise, 3000 * noise, 10_000 * brown / np.abs(brown).max(), tone(10.0))
    for sound in others:
        assert not has_speech(sound.astype(np.int16), VadConfig())
    assert has_speech(np.concatenate([np.zeros(64_000, np.int16), speech]), VadConfig())
    assert not has_speech(np.zeros(0, np.int16), VadConfig())
