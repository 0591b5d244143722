import numpy as np
import pytest

from tests.conftest import tone
from tiny_audio.config import ConfigError
from tiny_audio.inference.runner import Runner
from tiny_audio.inference.transcriber import Transcriber


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
