import numpy as np
import pytest
import torch

from tests.conftest import tone
from tiny_audio.config import ConfigError
from tiny_audio.inference.runner import Runner
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.lora import Adapter, adapter_weights, attach_adapter
from tiny_audio.model.projectors import make_projector
from tiny_audio.model.saved import save_model


def test_a_clips_text_does_not_depend_on_its_batch(model):
    transcriber = Transcriber(model)
    clips = [tone(0.5 + 0.4 * i, 150 * (i + 1)) for i in range(5)]
    together = transcriber(clips)
    assert together == [transcriber([clip])[0] for clip in clips]
    assert transcriber(clips[::-1]) == together[::-1]
    assert transcriber([]) == []


def test_a_transcript_that_was_cut_off_is_not_complete(model):
    transcript = Transcriber(model, max_new_tokens=1)([tone(1.0)])[0]
    assert transcript.num_tokens == 1
    assert not transcript.complete


def test_generate_on_padded_features_gives_the_transcribers_text(model):
    """`generate` finds the clip's length in the padded features, so it answers as `Transcriber` does."""
    clip = tone(1.7)
    features = model.feature_extractor(clip / 32768.0, sampling_rate=16000, return_tensors="pt").input_features
    ids = model.generate(input_features=features)
    assert " ".join(model.tokenizer.decode(ids[0], skip_special_tokens=True).split()) == Transcriber(model)([clip])[0].text


def test_a_clip_over_the_window_is_refused(model):
    with pytest.raises(ValueError, match=r"a clip of 8\.1 s is over 8 s"):
        Transcriber(model)([np.zeros(129_600, np.int16)])


@pytest.mark.parametrize("missing", ["FlashAttention", "C compiler"])
def test_an_engine_without_graphs_says_so_and_answers_the_same(model, monkeypatch, caplog, missing):
    """Without the kernel it never tries; without a compiler it finds out as it captures."""
    clip = tone(1.3)
    plain = Transcriber(model)
    assert plain.describe()["fallback"] == ""
    if missing == "C compiler":

        def capture(self):
            self.encode_windows = self.encode_packed = None
            raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr(Runner, "capture", capture)
        transcriber = Transcriber(model)
        transcriber.runner.graphed = True
    else:
        transcriber = Transcriber(model, graphs=True)
    transcriber.warm_up()
    assert missing in transcriber.describe()["fallback"]
    assert not transcriber.describe()["cuda_graphs"]
    assert [missing in record.message for record in caplog.records] == [True]
    assert transcriber.texts([clip]) == plain.texts([clip])


def test_fp8_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="fp8=true needs a GPU"):
        Transcriber.load(str(tmp_path), fp8=True)


def sibling_of(model, folder, seed: int, adapter=None, **settings) -> str:
    """Saves a model with the same backbones and another projector."""
    config = model.config.replaced(**settings)
    torch.manual_seed(seed)
    fresh = make_projector(config, model.encoder.config.d_model, model.decoder.config.hidden_size)
    save_model(config, fresh.state_dict(), adapter, folder)
    return str(folder)


def test_models_on_the_same_backbones_share_them_and_answer_as_each_does_alone(model, tmp_path):
    kinds = {"one": {}, "two": {"projector_type": "stack", "frames_per_token": 2}}
    paths = {name: sibling_of(model, tmp_path / name, seed, **kind) for seed, (name, kind) in enumerate(kinds.items(), 1)}
    together = Transcriber(model)
    for name, path in paths.items():
        together.add(name, path)
    clips = [tone(0.5 + 0.3 * i, 200 * (i + 1)) for i in range(6)]
    names = ["one", None, "two", "two", None, "one"]
    requests = [together.request(clip, model=name) for clip, name in zip(clips, names, strict=True)]
    for request in requests:
        together.engine.submit(request)
    together.engine.run()
    alone = {None: Transcriber(model)} | {name: Transcriber.load(path) for name, path in paths.items()}
    texts = {name: transcriber.texts(clips) for name, transcriber in alone.items()}
    assert [together.transcript(request.future.result()).text for request in requests] == [
        texts[name][i] for i, name in enumerate(names)
    ]
    assert all(len({texts[name][i] for name in texts}) == 3 for i in range(len(clips)))


@pytest.mark.parametrize(
    "settings", [{"encoder_window": "trimmed"}, {"max_new_tokens": 9}, {"frames_per_token": 4, "projector_type": "stack"}]
)
def test_a_model_that_differs_in_more_than_the_projector_shares_no_backbones(model, tmp_path, settings):
    name, *_ = settings
    with pytest.raises(ConfigError, match=f"its {name} is .*; models that are served together") as caught:
        Transcriber(model).add("other", sibling_of(model, tmp_path, 1, **settings))
    assert "\n" not in str(caught.value)


def test_a_model_with_lora_shares_no_decoder(model, tmp_path):
    other = ASRModel(model.config)
    attach_adapter(other.decoder, 1, 1.0, ["q_proj"])
    weights = {name: weight.detach() for name, weight in adapter_weights(other.decoder).items()}
    path = sibling_of(model, tmp_path, 1, adapter=Adapter(1, 1.0, ["q_proj"], weights))
    with pytest.raises(ConfigError, match="its LoRA changes the decoder"):
        Transcriber(model).add("other", path)
    with pytest.raises(ConfigError, match="the first model has LoRA merged"):
        Transcriber.load(path).add("other", path)
