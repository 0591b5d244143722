"""Backbones as the hub has them: whole Whisper checkpoints, sharded SmolLM3; and what is said of broken ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, SmolLM3Config, SmolLM3ForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from tests.conftest import tone
from tiny_audio.asr_config import ASRConfig
from tiny_audio.asr_modeling import ASRModel
from tiny_audio.backbone import load_decoder, load_encoder
from tiny_audio.random_backbones import SMOLLM3_3B, WHISPER_LARGE_V3_TURBO


def weights_in(folder) -> dict[str, torch.Tensor]:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def test_the_true_shapes_are_the_hubs():
    """809 M and 3.08 B, as the two models' cards count them, the tied embeddings once."""
    with torch.device("meta"):
        encoder = WhisperForConditionalGeneration(WhisperConfig(**WHISPER_LARGE_V3_TURBO))
        decoder = SmolLM3ForCausalLM(SmolLM3Config(**SMOLLM3_3B))
    assert (encoder.num_parameters(), decoder.num_parameters()) == (808_878_080, 3_075_098_624)
    assert [i for i, layer in enumerate(decoder.model.layers) if not layer.self_attn.use_rope] == list(range(3, 36, 4))


def test_a_whole_whisper_checkpoint_gives_its_encoder(hub_folders, tmp_path):
    """Its keys begin with `model.encoder.`; those of a checkpoint that `WhisperModel` saved begin with `encoder.`."""
    saved = weights_in(Path(hub_folders[0]))
    assert {key.split(".")[1] for key in saved} == {"encoder", "decoder"}
    ours = {key.removeprefix("model.encoder."): value for key, value in saved.items() if key.startswith("model.encoder.")}
    encoder = load_encoder(hub_folders[0], torch.bfloat16, "sdpa")
    loaded = encoder.state_dict()
    assert set(loaded) == set(ours)
    assert all(torch.equal(loaded[key], ours[key]) for key in ours)
    WhisperForConditionalGeneration.from_pretrained(hub_folders[0]).model.save_pretrained(tmp_path)
    assert "encoder.conv1.weight" in weights_in(tmp_path)
    again = load_encoder(str(tmp_path), torch.bfloat16, "sdpa").state_dict()
    assert all(torch.equal(again[key], ours[key]) for key in ours)


def test_a_sharded_decoder_with_tied_embeddings_loads(hub_folders):
    folder = Path(hub_folders[1])
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 3
    saved = weights_in(folder)
    assert "lm_head.weight" not in saved
    decoder = load_decoder(hub_folders[1], torch.bfloat16, "sdpa")
    loaded = decoder.state_dict()
    assert set(loaded) == {*saved, "lm_head.weight"}
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight


def test_a_model_on_such_folders_hears_and_answers(hub_folders, tmp_path):
    model = ASRModel(ASRConfig(audio_model_id=hub_folders[0], text_model_id=hub_folders[1], dtype="bfloat16"))
    extractor = AutoFeatureExtractor.from_pretrained(hub_folders[0])
    features = extractor(tone(1.0) / 32768.0, sampling_rate=16_000, return_tensors="pt").input_features
    assert features.shape == (1, 128, 400)
    ids = model.generate(input_features=features, max_new_tokens=4)
    model.save_pretrained(tmp_path)
    again = ASRModel.from_pretrained(tmp_path)
    assert torch.equal(again.generate(input_features=features, max_new_tokens=4), ids)
