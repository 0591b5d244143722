"""A CTC head lies beside a projector or an encoder, is optional, and spells what English is written with."""

import pytest
import torch

from tiny_audio.config import ConfigError
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.ctc_head import CTC_HEAD_FILE, new_ctc_head, save_ctc_head, spoken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The OLD baker, don’t!", "the old baker don't"),
        ("Señora Nuñez, straße", "senora nunez strasse"),
        ("'quoted' rock 'n' roll", "quoted rock n roll"),
        ("42 日本 — x", "x"),
        ("", ""),
    ],
)
def test_a_text_is_folded_to_what_can_be_heard(text, expected):
    assert spoken(text) == expected


def test_a_models_own_head_is_loaded_in_place_of_the_encoders(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / CTC_HEAD_FILE).is_file()  # that of the embedded encoder
    own = new_ctc_head(model.encoder.config.d_model)
    save_ctc_head(own, tmp_path)
    loaded = ASRModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.ctc_head.weight, own.weight)
    assert not any(name.startswith("ctc_head") for name in loaded.trained_weights())
    (tmp_path / CTC_HEAD_FILE).unlink()
    assert torch.equal(ASRModel.from_pretrained(tmp_path).ctc_head.weight, model.ctc_head.weight)


def test_an_encoder_without_a_head_has_none(hub_folders):

    encoder, decoder = hub_folders
    assert ASRModel(ASRConfig(audio_model_id=encoder, text_model_id=decoder)).ctc_head is None


def test_a_head_of_another_encoder_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    save_ctc_head(new_ctc_head(64), tmp_path)
    with pytest.raises(ConfigError, match="no head for an encoder of width 192; train it again"):
        ASRModel.from_pretrained(tmp_path)
