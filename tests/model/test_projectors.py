"""The kinds of projectors: their sizes, and that packed clips, whatever lies beside them, get the tokens of each alone."""

from typing import get_args

import numpy as np
import pytest
import torch

from tests.conftest import DECODER, ENCODER, tone
from tiny_audio.audio.clip import Clip, num_audio_tokens
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.config import ConfigError, ProjectorType
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.packing import pack
from tiny_audio.model.projectors import PROJECTORS, MLPProjector, make_projector

CLIPS = [
    Clip("a", tone(1.0), "the old baker"),
    Clip("b", tone(2.51, 300), "seven lemons past a quiet river"),
    Clip("c", tone(0.3), ""),
    Clip("d", tone(8.0, 500), "a quiet river"),  # the whole window
]
KINDS = [("mlp", None), ("stack", 4), ("stack", 7), ("stack", 1), ("swiglu", 4), ("moe", 8), ("conv", 4)]


def build(kind, frames_per_token, **settings) -> ASRModel:
    torch.manual_seed(0)
    config = {"projector_type": kind, "frames_per_token": frames_per_token, "max_new_tokens": 6, **settings}
    return ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, **config))


@pytest.mark.parametrize(
    ("kind", "frames_per_token", "num_parameters"),
    [
        ("mlp", 2, 11_730_944),
        ("stack", 4, 14_680_064),
        ("stack", 5, 17_301_504),
        ("swiglu", 4, 25_170_944),
        ("moe", 4, 29_385_728),
        ("conv", 4, 31_978_048),
    ],
)
def test_their_sizes_between_the_real_backbones(kind, frames_per_token, num_parameters):
    with torch.device("meta"):
        projector = make_projector(ASRConfig(projector_type=kind, frames_per_token=frames_per_token), 1280, 2048)
    assert projector.frames_per_token == frames_per_token
    assert sum(weight.numel() for weight in projector.parameters()) == num_parameters
    frames = torch.empty(frames_per_token * 1500, 1280, device="meta")
    assert projector(frames, torch.empty(2, dtype=torch.int64, device="meta")).shape == (1500, 2048)


def test_every_name_in_the_settings_is_a_kind():
    assert tuple(PROJECTORS) == get_args(ProjectorType)
    assert {kind: make_projector(ASRConfig(projector_type=kind), 8, 8).frames_per_token for kind in PROJECTORS} == {
        "mlp": 2,
        "stack": 4,
        "swiglu": 4,
        "moe": 4,
        "conv": 4,
    }


def test_the_seeds_projector_makes_no_other_tokens():
    with pytest.raises(ConfigError, match="projector_type=mlp makes a token of 2 frames, not 4; take stack, swiglu, moe or conv"):
        MLPProjector(8, 8, 4)


@pytest.mark.parametrize(("kind", "frames_per_token"), KINDS)
@pytest.mark.parametrize("window", ["full", "trimmed"])
def test_packed_clips_get_the_tokens_of_each_alone(kind, frames_per_token, window):
    model = build(kind, frames_per_token, encoder_window=window)
    packing = model.packing()
    batch = pack(CLIPS, packing)
    assert len(batch.audio) == sum(num_audio_tokens(len(clip.pcm), model.frames_per_token) for clip in CLIPS)
    loss = model(batch).loss_sum
    torch.testing.assert_close(loss, sum(model(pack([clip], packing)).loss_sum for clip in CLIPS), rtol=1e-5, atol=1e-4)
    loss.backward()
    assert all(weight.grad.norm() > 0 for weight in model.projector.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("kind", "frames_per_token"), KINDS)
def test_tokens_are_made_of_whispers_own_frames(kind, frames_per_token):
    """Of each clip's, in groups of k; a window that is no multiple of k ends with its last frame repeated."""
    model = build(kind, frames_per_token)
    k = model.frames_per_token
    batch = pack(CLIPS, model.packing())
    tokens = model.project(model.encode_batch(batch), batch.first_tokens)
    for clip, ours in zip(batch.rows, tokens.split([num_audio_tokens(len(clip.pcm), k) for clip in batch.rows]), strict=True):
        mels = log_mel(pad_waveforms([torch.from_numpy(clip.pcm)], model.window_num_samples), model.num_mels)
        frames = model.encoder(mels).last_hidden_state[0]
        frames = torch.cat([frames, frames[-1:].expand(k, -1)])[: k * len(ours)]
        alone = model.projector(frames, torch.zeros(1, dtype=torch.int64))
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "frames_per_token"), [("stack", 7), ("swiglu", 4), ("moe", 4), ("conv", 4)])
def test_it_transcribes_as_generate_does_and_is_saved_and_loaded(kind, frames_per_token, tmp_path):
    model = build(kind, frames_per_token)
    model.save_pretrained(tmp_path)
    again = ASRModel.from_pretrained(tmp_path)
    assert again.frames_per_token == frames_per_token
    transcripts = Transcriber(again)([clip.pcm for clip in CLIPS])
    for clip, transcript in zip(CLIPS, transcripts, strict=True):
        features = model.feature_extractor(clip.pcm / np.float32(32768), sampling_rate=16_000, return_tensors="pt").input_features
        ids = model.generate(features, torch.tensor([len(clip.pcm)]))[0]
        text = model.tokenizer.decode(ids, skip_special_tokens=True)
        assert transcript.text == " ".join(text.split())


@pytest.mark.parametrize("kind", ["stack", "swiglu", "moe", "conv"])
def test_its_weights_are_float32_beside_backbones_in_bf16(kind):
    model = build(kind, 4, dtype="bfloat16")
    assert {weight.dtype for weight in model.projector.parameters()} == {torch.float32}
    output = model(pack(CLIPS, model.packing()))
    output.loss.backward()
    assert {weight.grad.dtype for weight in model.projector.parameters()} == {torch.float32}
    assert output.loss.isfinite()
