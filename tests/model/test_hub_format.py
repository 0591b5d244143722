"""Backbones as the hub has them: whole Whisper checkpoints, sharded SmolLM3; and what is said of broken ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, SmolLM3Config, SmolLM3ForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from tests.conftest import DECODER, ENCODER, ROOT, tone
from tiny_audio.config import ConfigError, DataConfig, ModelConfig, TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.lab.random_backbones import SMOLLM3_3B, WHISPER_LARGE_V3_TURBO
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.decoder import load_decoder, require_decoder
from tiny_audio.model.encoder import load_encoder, read_window_s, require_encoder
from tiny_audio.run.metrics import read_metrics
from tiny_audio.training.driver import train


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


def encoder_of(folder):
    return load_encoder(folder, torch.float32, "sdpa")


def decoder_of(folder):
    return load_decoder(folder, torch.float32, "sdpa")


def delete(name):
    return lambda folder: next(folder.glob(name)).unlink()


def cut(name):
    """A download that stopped half way."""

    def damage(folder):
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def rewrite(name, **changes):
    def damage(folder):
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(values))

    return damage


def unsafe_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_weight(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.encoder.layers.1.fc1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


CONFIG, INDEX, FEATURES = "config.json", "model.safetensors.index.json", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("kind", "damage", "read", "message"),
    [
        ("encoder", delete(CONFIG), require_encoder, "the folder has no config.json; is the download complete?"),
        ("encoder", cut(CONFIG), read_window_s, "is not a valid JSON file"),
        ("decoder", rewrite(CONFIG, hidden_size="wide"), require_decoder, "'hidden_size' expected int, got str"),
        ("encoder", None, require_decoder, "is a whisper, not a Llama, Qwen2, Qwen3 or SmolLM3 checkpoint"),
        ("decoder", None, require_encoder, "is a smollm3, not a Whisper checkpoint"),
        ("decoder", None, encoder_of, "is a smollm3, not a Whisper checkpoint"),
        ("encoder", delete(FEATURES), require_encoder, "no usable preprocessor_config.json; fetch it again"),
        ("encoder", rewrite(FEATURES, hop_length=200), require_encoder, "says hop_length 200, the encoder needs 160"),
        ("encoder", rewrite(FEATURES, feature_size=80), require_encoder, "says feature_size 80, the encoder needs 128"),
        ("decoder", delete("tokenizer.json"), require_decoder, "its tokenizer cannot be read; fetch it again"),
        (
            "decoder",
            delete("*.jinja"),
            require_decoder,
            "the tokenizer has no chat template (chat_template.jinja); take",
        ),
        ("decoder", cut("*.jinja"), require_decoder, "its chat template cannot be used"),
        ("decoder", rewrite(CONFIG, vocab_size=500), require_decoder, "the tokenizer has ids to 1029, the model 500"),
        ("encoder", delete("*.safetensors"), require_encoder, "neither model.safetensors nor model.safetensors.index.json there"),
        ("encoder", unsafe_weights, encoder_of, "neither model.safetensors nor model.safetensors.index.json there"),
        ("encoder", cut("*.safetensors"), require_encoder, "model.safetensors: not a safetensors file, or a truncated one"),
        ("decoder", delete(INDEX), require_decoder, "neither model.safetensors nor model.safetensors.index.json there"),
        ("decoder", cut(INDEX), require_decoder, f"{INDEX}: not an index of shards"),
        ("decoder", delete("*-00002-*"), require_decoder, f"{INDEX} names this shard, and it is not there; fetch it again"),
        ("decoder", cut("*-00002-*"), decoder_of, "not a safetensors file, or a truncated one"),
        ("encoder", without_weight, encoder_of, "the checkpoint lacks layers.1.fc1.weight; is the download complete"),
        (
            "decoder",
            rewrite(CONFIG, intermediate_size=48),
            decoder_of,
            "0.mlp.down_proj.weight (64, 96), not (64, 48)",
        ),
    ],
)
def test_what_a_folder_lacks_is_one_clear_line(hub_folders, tmp_path, kind, damage, read, message):
    folder = tmp_path / "broken"
    shutil.copytree(Path(hub_folders[0]).parent / kind, folder)
    if damage:
        damage(folder)
    with pytest.raises(ConfigError) as caught:
        read(str(folder))
    said = str(caught.value)
    assert message in said
    assert said.startswith(str(folder))
    assert "\n" not in said


@pytest.mark.parametrize("read", [require_encoder, require_decoder, encoder_of, decoder_of])
def test_a_folder_that_is_not_there_is_said_to_be_none(read):
    with pytest.raises(ConfigError, match=r"^\./no: no such folder, and no hub id \(OWNER/NAME\)$"):
        read("./no")


def test_whole_folders_are_taken(hub_folders):
    for encoder, decoder in (hub_folders, (ENCODER, DECODER)):
        require_encoder(encoder)
        require_decoder(decoder)


def test_the_seeds_config_trains_on_such_folders(local_ray, hub_folders, shards, tmp_path):
    """The real run's file, with only places and lengths changed: whole Whisper, shards, bfloat16, the full window."""
    places = [f"runs_dir={tmp_path}", f"data.train={shards}/train/*.parquet", f"data.dev={shards}/dev/*.parquet"]
    backbones = [f"model.audio_model_id={hub_folders[0]}", f"model.text_model_id={hub_folders[1]}", "model.max_new_tokens=4"]
    config = load_config(
        TrainConfig,
        ROOT / "ray_jobs/configs/seed.yaml",
        [*places, *backbones, "use_gpu=false", "num_steps=1", "log_every=1", "max_failures=0"],
    )
    assert (config.model.dtype, config.model.encoder_window, config.data.batch_rows) == ("bfloat16", "full", 32)
    assert train(config)["step"] == 1
    lines = read_metrics(config.run_dir)
    assert [line["learning_rate"] for line in lines if "loss" in line] == [3e-4 / 50]
    assert 0 < lines[-1]["val_loss"] < 20
    exported = ASRModel.from_pretrained(config.run_dir / "model")
    assert exported.config.audio_model_id == hub_folders[0]
    assert exported.decoder.dtype == torch.bfloat16


def test_a_broken_backbone_stops_a_run_before_ray(hub_folders, shards, tmp_path):
    shutil.copytree(hub_folders[1], tmp_path / "decoder")
    delete("*-00002-*")(tmp_path / "decoder")
    config = TrainConfig(
        runs_dir=str(tmp_path),
        model=ModelConfig(audio_model_id=hub_folders[0], text_model_id=str(tmp_path / "decoder")),
        data=DataConfig(train=f"{shards}/train/*.parquet", dev=f"{shards}/dev/*.parquet"),
    )
    with pytest.raises(ConfigError, match="names this shard, and it is not there"):
        train(config, start_ray=lambda: pytest.fail("Ray was started"))
