"""A CTC head is trained on a frozen encoder's frames in seconds, and lies in the model's folder then."""

import random

import pytest

from tests.conftest import DECODER, ENCODER, write_shard
from tiny_audio.config import ConfigError
from tiny_audio.lab.synthetic.dataset import encode_audio
from tiny_audio.lab.synthetic.sentences import Grammar
from tiny_audio.lab.synthetic.speech import synthesize, training_voices
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.ctc_head import CTC_HEAD_FILE
from tiny_audio.training.ctc_head import train_ctc_head
from tiny_audio.training.ctc_head_config import CTCHeadConfig


@pytest.fixture
def saved(tmp_path) -> str:
    """A model without a head of its own."""
    folder = tmp_path / "model"
    ASRModel(ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, encoder_window="trimmed")).save_pretrained(folder)
    (folder / CTC_HEAD_FILE).unlink()
    return str(folder)


def test_a_head_learns_to_hear_letters(saved, tmp_path):
    rng = random.Random(3)
    texts = [Grammar(rng).sentence() for _ in range(50)]
    clips = [encode_audio(synthesize(text, rng.choice(training_voices()), rng), "wav") for text in texts]
    labels = ["42 lemons", *texts[1:]]  # the first cannot be spelled
    ids = [f"row-{number}" for number in range(len(texts))]
    write_shard(tmp_path / "a.parquet", list(zip(ids, clips, labels, strict=True)))
    config = CTCHeadConfig(model=saved, data=[str(tmp_path / "*.parquet")], num_epochs=25)
    facts = train_ctc_head(config, lambda clips: clips)
    assert facts["num_clips"] + facts["num_held_out"] == 49 + 2  # two of silence or noise
    assert facts["letter_error_rate"] < 0.35
    assert (ASRModel.from_pretrained(saved).ctc_head.weight != ASRModel(ASRConfig(ENCODER, DECODER)).ctc_head.weight).any()


def test_data_without_a_label_that_can_be_spelled_is_refused(saved, tmp_path):
    clip = encode_audio(synthesize("forty two", training_voices()[0], random.Random(1)), "wav")
    write_shard(tmp_path / "a.parquet", [("row", clip, "42")])
    with pytest.raises(ConfigError, match="no row is speech with a label of letters"):
        train_ctc_head(CTCHeadConfig(model=saved, data=[str(tmp_path / "*.parquet")]), lambda clips: clips)
