"""The pieces of a transcript, joined, are its text, and none ends within a character."""

import pytest
from transformers import AutoTokenizer

from tests.conftest import DECODER, ROOT
from tiny_audio.inference.deltas import UNFINISHED, Deltas


@pytest.mark.parametrize("text", ["the old baker", " Señora  Nuñez paid 20 € — 日本 🎈 ", ""])
def test_pieces_join_to_the_text(text):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / DECODER)
    ids, deltas = tokenizer(text, add_special_tokens=False)["input_ids"], Deltas(tokenizer)
    pieces = [deltas.add([token]) for token in ids]
    assert "".join(pieces) == " ".join(text.split())
    assert not any(UNFINISHED in piece for piece in pieces)
    assert deltas.rest(" ".join(text.split())) == ""
