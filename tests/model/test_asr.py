import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import conv1d, gelu

from tests.conftest import DECODER, ENCODER, ROOT, tone
from tiny_audio.audio.augment import MaskSpans
from tiny_audio.audio.clip import Clip, num_audio_tokens
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.decoder import load_decoder
from tiny_audio.model.encoder import load_encoder
from tiny_audio.model.layers import encoder_layers, plain_layers, stem
from tiny_audio.model.packing import pack
from tiny_audio.model.projectors import MLPProjector
from tiny_audio.model.prompt import label_ids
from tiny_audio.training.feature_cache import FeatureCache

CLIPS = [
    Clip("a", tone(1.0), "the old baker"),
    Clip("b", tone(2.5, 300), "seven lemons past a quiet river"),
    Clip("c", tone(0.3), ""),
]


def test_the_projector_is_the_seeds():
    with torch.device("meta"):
        projector = MLPProjector(1280, 2048)
    assert sum(weight.numel() for weight in projector.parameters()) == 11_730_944
    frames, first = torch.empty(3000, 1280, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    assert projector(frames, first).shape == (1500, 2048)


def test_the_seeds_usage_works(tmp_path):
    model = ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, projector_type="mlp", attn_implementation="sdpa"))
    features = model.feature_extractor(tone(2.0) / 32768.0, sampling_rate=16000, return_tensors="pt").input_features
    ids = model.generate(input_features=features, max_new_tokens=5)
    assert ids.shape[1] <= 5
    assert isinstance(model.tokenizer.decode(ids[0], skip_special_tokens=True), str)
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors", "ctc_head.safetensors"}
    again = ASRModel.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (again.generate(input_features=features, max_new_tokens=5) == ids).all()


@torch.no_grad()
def test_any_length_encodes_as_whispers_own_at_the_full_window(model):
    mels = torch.randn(2, 128, 800)
    torch.testing.assert_close(
        encoder_layers(model.encoder, stem(model.encoder, mels), None),
        model.encoder(mels).last_hidden_state,
        atol=1e-5,
        rtol=1e-5,
    )
    assert encoder_layers(model.encoder, stem(model.encoder, mels[..., :122]), None).shape == (2, 61, 192)


def plain_loss(model, clip):
    """The loss of one clip as transformers' own modules compute it, padded to the encoder's window."""
    pcm = pad_waveforms([torch.from_numpy(clip.pcm)], model.window_num_samples)
    encoded = model.encoder(log_mel(pcm, model.num_mels)).last_hidden_state
    projector = model.projector
    hidden = conv1d(encoded.transpose(1, 2), projector.conv.weight, stride=2, padding=1).transpose(1, 2)
    audio = projector.linear_2(gelu(projector.linear_1(hidden)))[:, : num_audio_tokens(len(clip.pcm), 2)]
    (ids,) = label_ids(model.tokenizer, model.prompt, [clip.text])
    embed = model.decoder.model.embed_tokens
    parts = [embed(torch.tensor([part])) for part in (model.prompt.prefix, model.prompt.suffix, ids)]
    inputs = torch.cat([parts[0], audio, *parts[1:]], dim=1)
    labels = torch.full(inputs.shape[:2], -100)
    labels[0, -len(ids) :] = torch.tensor(ids)
    return model.decoder(inputs_embeds=inputs, labels=labels).loss * len(ids), len(ids)


def test_the_packed_loss_and_gradients_are_transformers_own_on_each_clip_alone(model):
    """Clips end to end, the last layer and the logits at the label positions only: the same as the plain way."""
    ours = model(pack(CLIPS, model.packing()))
    ours.loss_sum.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.projector.named_parameters()}
    model.zero_grad()
    losses, counts = zip(*(plain_loss(model, clip) for clip in CLIPS), strict=True)
    sum(losses).backward()
    torch.testing.assert_close(ours.loss_sum, sum(losses), rtol=1e-5, atol=1e-4)
    assert ours.num_label_tokens == sum(counts)
    for name, weight in model.projector.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-4)
    model.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("window", ["full", "trimmed"])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_clips_loss_does_not_depend_on_its_neighbours(model, monkeypatch, window, grouped):
    monkeypatch.setattr(model.config, "encoder_window", window)
    monkeypatch.setattr("tiny_audio.model.packing.GROUP_CLIPS", 2)
    packing = model.packing(grouped)
    together = model(pack(CLIPS, packing)).loss_sum
    torch.testing.assert_close(together, sum(model(pack([clip], packing)).loss_sum for clip in CLIPS), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_worker_without_clips_computes_and_counts_nothing(model):
    output = model(pack([], model.packing()))
    assert (float(output.loss_sum), output.num_label_tokens) == (0.0, 0)


def test_only_the_projector_gets_gradients_and_training_mode(model):
    model.train()
    model(pack(CLIPS, model.packing())).loss.backward()
    named = dict(model.named_parameters())
    assert {name for name, weight in named.items() if weight.grad is not None} == {n for n in named if n.startswith("projector.")}
    assert not model.encoder.training
    assert not model.decoder.training
    model.zero_grad()


def test_bf16_backbones_keep_a_float32_projector():
    torch.manual_seed(0)
    model = ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, dtype="bfloat16"))
    assert {weight.dtype for weight in model.projector.parameters()} == {torch.float32}
    assert model.decoder.dtype == model.encoder.conv1.weight.dtype == torch.bfloat16
    output = model(pack(CLIPS, model.packing()))
    output.loss.backward()
    assert model.projector.conv.weight.grad.dtype == torch.float32
    assert output.loss.isfinite()


def _copy_without(folder, out, key):
    shutil.copytree(ROOT / folder, out)
    state = load_file(out / "model.safetensors")
    del state[key]
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """transformers would only warn, and leave them random."""
    _copy_without(ENCODER, tmp_path / "encoder", "model.encoder.layers.2.fc1.weight")
    with pytest.raises(ValueError, match=r"encoder: the checkpoint lacks layers\.2\.fc1\.weight"):
        load_encoder(str(tmp_path / "encoder"), torch.float32, "sdpa")
    _copy_without(DECODER, tmp_path / "decoder", "model.norm.weight")
    with pytest.raises(ValueError, match=r"decoder: the checkpoint lacks model\.norm\.weight"):
        load_decoder(str(tmp_path / "decoder"), torch.float32, "sdpa")


def test_a_projector_of_another_shape_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    save_file({"projector.linear_2.weight": nn.Linear(4, 4).weight.detach()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a projector for"):
        ASRModel.from_pretrained(tmp_path)


def test_an_unknown_projector_is_refused():
    with pytest.raises(ValueError, match="projector_type must be one of"):
        ASRConfig(projector_type="qformer")


def test_the_embedded_backbones_are_small_and_ours():
    files = list((ROOT / "tiny_audio/backbones").rglob("*"))
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 12_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
    config = json.loads((ROOT / ENCODER / "config.json").read_text())
    assert (config["model_type"], config["num_mel_bins"]) == ("whisper", 128)
    assert json.loads((ROOT / DECODER / "config.json").read_text())["model_type"] == "smollm3"
    assert "hours" in (ROOT / "tiny_audio/backbones/MODEL_CARD.md").read_text()


@torch.no_grad()
def test_known_encoder_frames_stand_in_for_their_clips(model):
    """The first or both of two clips from the cache: the same loss as without. Made silence is not kept."""
    packing, cache = model.packing(), FeatureCache(1e9)
    batch = pack(CLIPS, packing)
    cache.keep(batch.fresh, model(batch).encoded, batch.num_frames)
    assert cache.find(CLIPS[2]) is None
    spoken = CLIPS[:2]
    plain = model(pack(spoken, packing))
    for places in ((0,), (0, 1)):
        output = model(pack(spoken, packing, {i: cache.find(spoken[i]) for i in places}))
        torch.testing.assert_close(output.loss_sum, plain.loss_sum, rtol=1e-5, atol=1e-4)
        assert (output.encoded is None) == (len(places) == 2)
    assert cache.find(Clip("a", tone(1.0, 200), "the old baker")) is None  # its ID, but other audio


def test_a_full_cache_takes_no_more():
    cache = FeatureCache(100.0)
    for _ in range(3):  # a clip counts once
        cache.keep([CLIPS[0]], torch.zeros(2, 8), [2])
    assert cache.left_bytes == 36
    cache.keep([CLIPS[1]], torch.zeros(2, 8), [2])
    assert cache.find(CLIPS[0]) is not None
    assert cache.find(CLIPS[1]) is None


@torch.no_grad()
def test_masks_hide_the_log_mels_of_the_clips_they_were_drawn_for(model):
    """All of one clip hidden: its loss changes as if it alone were encoded so; the others' do not."""

    def hide_the_longest(clips):
        spans = np.zeros((len(clips), 1, 2), int)
        spans[-1, 0, 1] = 100
        return MaskSpans(spans, np.zeros((len(clips), 0, 2), int), np.array([len(clip.pcm) // 160 for clip in clips]))

    packing = model.packing()
    masked, plain = (model(pack(CLIPS, packing, None, draw)).encoded for draw in (hide_the_longest, lambda clips: None))
    first = masked.shape[0] - 2 * num_audio_tokens(len(CLIPS[1].pcm), 2)
    torch.testing.assert_close(masked[:first], plain[:first])
    assert not torch.allclose(masked[first:], plain[first:])


@torch.no_grad()
def test_generate_takes_log_mels_of_any_length_and_refuses_lengths_beyond_them(model):
    """122 frames are 30 and a half tokens: the last of each row is its own, not its neighbour's."""
    mels = torch.randn(2, 128, 122)
    num_samples = torch.tensor([122 * 160, 122 * 160])
    together = model.generate(mels, num_samples, max_new_tokens=3)
    assert (together[1] == model.generate(mels[1:], num_samples[1:], max_new_tokens=3)[0]).all()
    with pytest.raises(ValueError, match="more than the 122 frames"):
        model.generate(mels, torch.tensor([122 * 160, 140 * 160]), max_new_tokens=3)


def test_one_compilation_serves_batches_of_any_length(hub_folders):
    """Torch compiles at most eight times, and then computes as if nothing were compiled, without a word."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = ASRModel(ASRConfig(audio_model_id=hub_folders[0], text_model_id=hub_folders[1]))
    compiled = plain_layers(model.family, partial(torch.compile, dynamic=True, backend="aot_eager"))
    model.layers = model.layers._replace(decoder=compiled.decoder, last_decoder=compiled.last_decoder)
    counts = []
    for clips in (CLIPS, CLIPS[:2], CLIPS + CLIPS):
        model(pack(clips, model.packing())).loss_sum.backward()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < counts[0] == counts[1] == counts[2]
