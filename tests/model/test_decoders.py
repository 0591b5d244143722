"""Each family of decoders, on checkpoints in the hub's format: the same as transformers' own, and what is said of broken ones."""

import datetime
import json
import shutil
from itertools import takewhile

import numpy as np
import pytest
import torch

from tests.conftest import TINY_WHISPER, tone
from tests.model.decoder_folders import CHECKPOINTS, write_checkpoint
from tests.model.test_asr import plain_loss
from tests.model.test_hub_format import CONFIG, delete, rewrite
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.inference.vocabulary import token_bytes
from tiny_audio.lab.random_backbones import write_encoder
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.decoder import FAMILIES, require_decoder
from tiny_audio.model.layers import join_projections
from tiny_audio.model.packing import pack
from tiny_audio.model.prompt import label_ids, render_chat

CLIPS = [Clip("a", tone(1.0), "the old baker"), Clip("b", tone(2.5, 300), "seven lemons"), Clip("c", tone(0.3), "")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Writes a decoder of each checkpoint, and an encoder of 80 mels, as Whisper's but for large-v3 have."""
    folder = tmp_path_factory.mktemp("decoders")
    write_encoder(folder / "encoder", TINY_WHISPER | {"num_mel_bins": 80})
    return {"encoder": folder / "encoder", **{name: write_checkpoint(name, folder / name, "100KB") for name in CHECKPOINTS}}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def named(request, folders):
    torch.manual_seed(0)
    config = ASRConfig(audio_model_id=str(folders["encoder"]), text_model_id=str(folders[request.param]), max_new_tokens=12)
    return request.param, ASRModel(config)


def test_every_family_has_a_checkpoint():
    assert {checkpoint.model_type for checkpoint in CHECKPOINTS.values()} | {"smollm3"} == set(FAMILIES)


def test_the_chat_is_the_templates_own_without_thoughts_or_todays_date(named):
    name, model = named
    checkpoint, system_prompt, today = CHECKPOINTS[name], model.family.system_prompt, datetime.date.today()
    assert render_chat(model.tokenizer, system_prompt, "the old baker") == checkpoint.rendered
    assert str(today.year) not in render_chat(model.tokenizer, system_prompt)


def test_prompt_and_labels_are_the_whole_chats_tokens(named):
    name, model = named
    tokenizer, prompt, rendered = model.tokenizer, model.prompt, CHECKPOINTS[name].rendered
    (labels,) = label_ids(tokenizer, prompt, [" the old  baker "])
    whole = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    audio = tokenizer.convert_tokens_to_ids("<audio>")
    assert [*prompt.prefix, audio, *prompt.suffix, *labels] == whole
    ending = rendered.split("baker")[1]
    assert tokenizer.convert_ids_to_tokens(prompt.end_id) == ending.strip()
    assert label_ids(tokenizer, prompt, [""]) == [tokenizer(ending, add_special_tokens=False)["input_ids"]]
    assert prompt.pad_id == tokenizer.convert_tokens_to_ids(CHECKPOINTS[name].tokens.get("pad_token", ending.strip()))


def test_packed_losses_and_gradients_are_transformers_own_on_each_clip_alone(named):
    model = named[1]
    weights = list(model.projector.parameters())
    ours = model(pack(CLIPS, model.packing()))
    gradients = torch.autograd.grad(ours.loss_sum, weights)
    losses, counts = zip(*(plain_loss(model, clip) for clip in CLIPS), strict=True)
    torch.testing.assert_close(ours.loss_sum, sum(losses), rtol=1e-5, atol=0)
    assert ours.num_label_tokens == sum(counts)
    for gradient, plain in zip(gradients, torch.autograd.grad(sum(losses), weights), strict=True):
        assert (gradient - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("text", ["the old baker", "Señora Nuñez paid 20 € — 日本 🎈"])
def test_the_bytes_of_tokens_are_their_texts(named, text):
    model = named[1]
    data = token_bytes(model.tokenizer, model.decoder.config.vocab_size)
    ids = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], model.prompt.end_id]
    assert b"".join(data[token] for token in ids).decode().strip() == text
    assert len(data) == model.decoder.config.vocab_size


def engine_ids(model, clips) -> list[list[int]]:
    transcriber = Transcriber(model, max_slots=2)
    answers = [transcriber.submit(clip) for clip in clips]
    transcriber.engine.run()
    return [answer.result().ids for answer in answers]


@torch.no_grad()
def test_the_engine_writes_what_generate_does(named):
    """Then again with an output head in which the end of turn has changed places with a token of the first text."""
    model = named[1]
    clips, head = [tone(0.4 + 0.7 * i, 150 * (i + 1)) for i in range(4)], model.decoder.lm_head
    long, own = engine_ids(model, clips), head.weight
    assert len(set(map(tuple, long))) == len(clips)
    swapped = [model.prompt.end_id, long[0][2]]
    head.weight = torch.nn.Parameter(own.clone())
    head.weight[swapped] = own[swapped[::-1]]
    try:
        ended = engine_ids(model, clips)
        assert len(ended[0]) <= 2
        for clip, ids in zip(clips, ended, strict=True):
            features = model.feature_extractor(clip / np.float32(32768), sampling_rate=16_000, return_tensors="pt").input_features
            expected = model.generate(features, torch.tensor([len(clip)]))[0].tolist()
            assert ids == list(takewhile(lambda token: token != model.prompt.end_id, expected))
    finally:
        head.weight = own


def test_a_saved_model_finds_its_decoder_again(named, tmp_path):
    model = named[1]
    model.save_pretrained(tmp_path)
    again = ASRModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert Transcriber(again).texts([CLIPS[1].pcm]) == Transcriber(model).texts([CLIPS[1].pcm])


@pytest.mark.parametrize("name", ["Qwen2.5", "Qwen3"])
def test_joined_projections_with_biases_or_norms_compute_the_same(folders, name):
    """As the engine joins them on a GPU."""
    model = ASRModel(ASRConfig(audio_model_id=str(folders["encoder"]), text_model_id=str(folders[name])))
    batch = pack(CLIPS, model.packing())
    alone = model(batch).loss_sum
    join_projections(model.decoder.model)
    torch.testing.assert_close(model(batch).loss_sum, alone, rtol=1e-5, atol=0)


def without_template(folder):
    for path in folder.glob("*.jinja"):
        path.unlink()


def without_model_type(folder):
    values = json.loads((folder / CONFIG).read_text())
    del values["model_type"]
    (folder / CONFIG).write_text(json.dumps(values))


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen3"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete(CONFIG), "the folder has no config.json; is the download complete?"),
        (rewrite(CONFIG, model_type="gemma2"), "is a gemma2, not a Llama, Qwen2, Qwen3 or SmolLM3 checkpoint"),
        (rewrite(CONFIG, model_type="llama9"), "llama9"),
        (without_model_type, "model_type"),
        (rewrite(CONFIG, hidden_act="gelu"), "computes with gelu, and only silu is computed here"),
        (rewrite(CONFIG, layer_types=["sliding_attention"] * 3), "attends within a sliding window"),
        (rewrite(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}), "its weights are quantised"),
        (delete("tokenizer.json"), "its tokenizer cannot be read; fetch it again"),
        (without_template, "the tokenizer has no chat template (chat_template.jinja); take the instruction-tuned checkpoint"),
        (template("{% for message in messages %}{{ message.content }}!{% endfor %}"), "which begins with no special token"),
        (template("{{ messages[0].role }}"), "renders 0 audio placeholders, expected 1"),
        (
            template("{{ messages[-1].content }}{% if add_generation_prompt %}<think>{% endif %}"),
            "no prefix of the answered chat",
        ),
        (template("{{ raise_exception('no audio') }}"), "its chat template cannot be used: no audio"),
        (delete("*-00002-*"), "names this shard, and it is not there; fetch it again"),
        (delete("*.safetensors.index.json"), "neither model.safetensors nor model.safetensors.index.json there"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(folders, tmp_path, name, damage, message):
    folder = tmp_path / "broken"
    shutil.copytree(folders[name], folder)
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        require_decoder(str(folder))
    said = str(caught.value)
    assert message in said
    assert str(folder) in said
    assert "\n" not in said


def test_weights_that_can_run_code_are_not_read(folders, tmp_path):
    shutil.copytree(folders["Qwen2.5"], tmp_path / "decoder")
    for path in (tmp_path / "decoder").glob("*.safetensors*"):
        path.unlink()
    torch.save({}, tmp_path / "decoder/pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json there"):
        require_decoder(str(tmp_path / "decoder"))
