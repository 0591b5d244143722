import numpy as np
import pytest

from tests.conftest import tone
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
