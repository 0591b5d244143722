"""`ASRModel` and `ASRConfig` keep the contract of the transformers classes that they extend."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, TextStreamer, pipeline

from tests.conftest import ROOT, tone
from tiny_audio.audio.clip import Clip
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.packing import pack
from tiny_audio.model.prompt import label_ids
from tiny_audio.model.saved import load_projector

CLIPS = [Clip("a", tone(1.3), "the old baker"), Clip("b", tone(2.5, 300), "seven lemons past a quiet river")]
LENGTHS = torch.tensor([len(clip.pcm) for clip in CLIPS])


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def log_mels(model):
    return log_mel(pad_waveforms([torch.from_numpy(clip.pcm) for clip in CLIPS], model.window_num_samples), model.num_mels)


@pytest.mark.parametrize("imports", ["import tiny_audio, transformers", "import transformers.pipelines, tiny_audio"])
def test_the_auto_classes_and_pipelines_know_it_after_import_tiny_audio(folder, imports):
    """Whichever is imported first."""
    code = (
        f"{imports}; from transformers import AutoConfig, AutoModel, pipeline; import sys; folder = sys.argv[1];"
        "print(type(AutoConfig.from_pretrained(folder)).__name__, type(AutoModel.from_pretrained(folder)).__name__,"
        "pipeline('automatic-speech-recognition', model=folder).type)"
    )
    run = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["ASRConfig", "ASRModel", "seq2seq"]


def test_import_tiny_audio_is_light():
    """It comes with every decode task: a few milliseconds, and neither torch nor transformers."""
    code = "import sys, tiny_audio.data.rows; print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSpeechSeq2Seq])
def test_auto_models_are_from_pretrained(folder, auto):
    loaded, plain = auto.from_pretrained(folder, dtype="auto"), ASRModel.from_pretrained(folder)
    assert type(loaded) is ASRModel
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))
    with pytest.raises(TypeError, match="does not know the keyword window"):
        auto.from_pretrained(folder, window="full")
    fresh = auto.from_config(AutoConfig.from_pretrained(folder, dtype="bfloat16"))
    assert {weight.dtype for weight in fresh.projector.parameters()} == {torch.float32}
    assert fresh.decoder.dtype == torch.bfloat16


def test_a_pipeline_gives_the_transcribers_text(folder, model):
    clip = CLIPS[1].pcm
    text = Transcriber(model).texts([clip])[0]
    for loaded in (str(folder), model):
        transcribe = pipeline("automatic-speech-recognition", model=loaded)
        assert transcribe(clip / np.float32(32768))["text"] == text
    with pytest.raises(ValueError, match=r"a clip of 8\.1 s is over 8 s"):
        transcribe(np.zeros(129_600, np.float32))


def test_pipelines_of_other_models_are_transformers_own(tmp_path):
    """What there is to replace is kept for them: here, CTC decoding."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 1, "|": 2, "<unk>": 3}))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 4}
    other = Wav2Vec2ForCTC(Wav2Vec2Config(**small, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2))
    for part in (other, Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")):
        part.save_pretrained(tmp_path)
    transcribe = pipeline("automatic-speech-recognition", model=str(tmp_path))
    assert transcribe.type == "ctc"
    assert set(transcribe(np.zeros(16_000, np.float32))) == {"text"}
    with pytest.raises(ValueError, match="pass both to pipeline"):
        pipeline("automatic-speech-recognition", model=other)


@pytest.fixture
def hub_cache(tmp_path, folder):
    """The hub's cache of a model with two revisions, whose configs and weights differ."""
    repo = tmp_path / "models--someone--speech"
    for number, revision in enumerate(("main", "v1")):
        commit = str(number) * 40
        shutil.copytree(folder, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        config = json.loads((folder / "config.json").read_text()) | {"max_new_tokens": 10 + number}
        (repo / "snapshots" / commit / "config.json").write_text(json.dumps(config))
        state = {f"projector.{name}": torch.full_like(weight, number) for name, weight in load_projector(folder).items()}
        save_file(state, repo / "snapshots" / commit / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("load", [ASRModel.from_pretrained, AutoModel.from_pretrained])
def test_a_revision_is_that_of_the_config_and_of_the_weights(hub_cache, load):
    for number, revision in enumerate((None, "v1")):
        loaded = load("someone/speech", revision=revision, cache_dir=hub_cache)
        assert loaded.config.max_new_tokens == 10 + number
        assert (loaded.projector.linear_1.weight == number).all()
    with pytest.raises(OSError, match="cached files"):
        load("someone/speech", revision="v2", cache_dir=hub_cache)


def test_an_unknown_keyword_is_an_error(folder, model, tmp_path):
    for load in (ASRModel.from_pretrained, ASRConfig.from_pretrained):
        with pytest.raises(TypeError, match="does not know the keyword max_tokens"):
            load(folder, max_tokens=3)
    with pytest.raises(TypeError, match="does not know the keyword shards"):
        model.save_pretrained(tmp_path, shards=3)
    with pytest.raises(ValueError, match="ASRConfig has no setting window"):
        ASRConfig(window="full")
    with pytest.raises(ValueError, match="beam"):
        model.generate(torch.zeros(1, 128, 800), beam=3)


def test_settings_replace_the_saved_ones_and_are_checked(folder):
    assert ASRModel.from_pretrained(folder, encoder_window="trimmed").trimmed
    given = ASRModel.from_pretrained(folder, config=ASRConfig.from_pretrained(folder, max_new_tokens=3), encoder_window="trimmed")
    assert (given.config.max_new_tokens, given.trimmed) == (3, True)
    for load in (ASRModel.from_pretrained, ASRConfig.from_pretrained):
        with pytest.raises(ValueError, match="encoder_window must be one of"):
            load(folder, encoder_window="half")


def test_dtype_and_device_map(folder):
    for keywords in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}):
        loaded = ASRModel.from_pretrained(folder, **keywords)
        assert (loaded.decoder.dtype, loaded.projector.linear_1.weight.dtype) == (torch.bfloat16, torch.float32)
    for device in ("cpu", {"": "cpu"}, torch.device("cpu")):
        loaded = ASRModel.from_pretrained(folder, device_map=device, dtype="auto")
        assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)
    for several in ("balanced", {"encoder": "cpu", "decoder": "cpu"}):
        with pytest.raises(ValueError, match="device_map must name one device"):
            ASRModel.from_pretrained(folder, device_map=several)


def test_push_to_hub_uploads_what_save_pretrained_writes(model, monkeypatch):
    """As far as a machine without the hub can tell: transformers' own client is told of these files."""
    uploads = []

    class Hub:
        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": repo_id})

        def create_commit(self, repo_id, operations, **kwargs):
            uploads.append((repo_id, {operation.path_in_repo for operation in operations}))

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    model.push_to_hub("someone/speech")
    assert [(name, files - {"README.md"}) for name, files in uploads] == [
        ("someone/speech", {"config.json", "model.safetensors", "ctc_head.safetensors"})
    ]


def test_log_mels_and_labels_give_the_packed_loss_and_gradients(model, log_mels):
    ids = [torch.tensor(ids) for ids in label_ids(model.tokenizer, model.prompt, [clip.text for clip in CLIPS])]
    labels = pad_sequence(ids, batch_first=True, padding_value=-100)
    gradients = []
    packed = model(pack(CLIPS, model.packing()))
    for output in (
        packed,
        model(input_features=log_mels, labels=labels, num_samples=LENGTHS),
        model(input_features=log_mels, labels=labels, attention_mask=torch.arange(800) < -(-LENGTHS[:, None] // 160)),
    ):
        assert output.num_label_tokens == packed.num_label_tokens
        torch.testing.assert_close(output.loss, packed.loss, rtol=1e-5, atol=1e-5)
        model.zero_grad()
        output.loss.backward()
        gradients.append(model.projector.conv.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    model.zero_grad()
    with pytest.raises(ValueError, match="generate gives text"):
        model(input_features=log_mels)


def test_sampling_beams_and_streamers_reach_the_decoder(model, log_mels):
    greedy = model.generate(log_mels, LENGTHS)
    assert torch.equal(greedy, model.generate(log_mels, LENGTHS, do_sample=False, num_beams=1))
    torch.manual_seed(0)
    sampled = [model.generate(log_mels, LENGTHS, do_sample=True, temperature=5.0).tolist() for _ in range(2)]
    assert sampled[0] != sampled[1]
    assert model.generate(log_mels, LENGTHS, num_beams=3, num_return_sequences=2).shape[0] == 4
    pieces = []

    class Pieces(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    ids = model.generate(log_mels[:1], LENGTHS[:1], streamer=Pieces(model.tokenizer))
    assert "".join(pieces) == model.tokenizer.decode(ids[0])


@pytest.mark.parametrize("samples", [(480_000, 2), (2, 16_000)])
def test_stereo_is_one_clear_error(model, samples):
    """(S, 2) was taken for S clips of two samples, each padded to the window, until memory ran out."""
    stereo = np.zeros(samples, np.int16)
    refusals = [
        lambda: model.feature_extractor(stereo / np.float32(32768), sampling_rate=16_000),
        lambda: Transcriber(model)(stereo),
        lambda: Transcriber(model)([stereo]),
        lambda: pack([Clip("a", stereo, "")], model.packing()),
    ]
    for refused in refusals:
        with pytest.raises(ValueError, match=r"a clip is one channel of shape \(samples,\), not"):
            refused()


def test_audio_over_the_window_is_one_clear_error(model):
    long = np.zeros(129_600, np.int16)
    refusals = [
        lambda: model.feature_extractor(long / np.float32(32768), sampling_rate=16_000),
        lambda: model.feature_extractor([long[:16_000], long], sampling_rate=16_000),
        lambda: Transcriber(model)([long]),
        lambda: pack([Clip("a", long, "")], model.packing()),
    ]
    for refused in refusals:
        with pytest.raises(ValueError, match=r"a clip of 8\.1 s is over 8 s, the encoder's window"):
            refused()
    for shape in ((1, 128, 810), (128, 800), (1, 80, 800)):
        with pytest.raises(ValueError, match="input_features must be log-mels of shape"):
            model.generate(torch.zeros(shape))


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_saved_files_follow_the_umask(model, tmp_path, umask):
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()} == {0o666 & ~umask}
