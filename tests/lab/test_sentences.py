import random

import numpy as np
import pytest

from tiny_audio.config import ConfigError
from tiny_audio.lab.synthetic.config import SyntheticConfig
from tiny_audio.lab.synthetic.dataset import MANIFEST, _splits, make_dataset
from tiny_audio.lab.synthetic.sentences import (
    Grammar,
    blocked_words,
    conjugate,
    load_lexicon,
    novel_sentences,
    plural,
    read_sentences,
    unique_sentences,
)


def test_english_forms():
    assert [plural(noun) for noun in ("cat", "box", "city", "boy", "potato")] == ["cats", "boxes", "cities", "boys", "potatoes"]
    assert vars(conjugate("stop")) == {"base": "stop", "third": "stops", "past": "stopped", "ing": "stopping"}
    assert vars(conjugate("carry")) == {"base": "carry", "third": "carries", "past": "carried", "ing": "carrying"}
    assert vars(conjugate("write:wrote")) == {"base": "write", "third": "writes", "past": "wrote", "ing": "writing"}


def test_sentences_are_seeded_different_and_of_known_words():
    sentences = unique_sentences(500, seed=7)
    assert sentences == unique_sentences(500, seed=7)
    assert len(set(sentences)) == 500
    assert all(3 <= len(sentence.split()) <= 12 for sentence in sentences)
    held_out = load_lexicon(held_out=True).forms() - load_lexicon().forms()
    assert len(held_out) > 100
    assert not held_out & set(" ".join(sentences).split())
    assert not set(unique_sentences(50, seed=8, exclude=set(sentences))) & set(sentences)


def test_a_novel_sentence_has_exactly_one_held_out_word():
    held_out = load_lexicon(held_out=True).forms() - load_lexicon().forms()
    for sentence in novel_sentences(50, seed=1):
        assert sum(word in held_out for word in sentence.split()) == 1


def test_nothing_blocked_is_said_or_invented():
    grammar = Grammar(random.Random(0))
    blocked = blocked_words()
    assert not blocked & (load_lexicon().forms() | load_lexicon(held_out=True).forms())
    invented = {grammar.invented() for _ in range(5000)}
    assert not [word for word in invented if any(bad in word for bad in blocked)]
    assert not invented & (load_lexicon().forms() | load_lexicon(held_out=True).forms())


def test_speech_is_seeded_and_voices_do_not_overlap():
    pytest.importorskip("espeakng_loader", reason="the extra [data] is not installed")
    from tiny_audio.lab.synthetic.speech import Voice, held_out_voices, synthesize, training_voices

    assert not set(training_voices()) & set(held_out_voices())
    voice = held_out_voices()[3]
    pcm = synthesize("the old baker", voice, random.Random(1))
    assert pcm.dtype == np.int16
    assert 0.5 < len(pcm) / 16_000 < 3
    assert np.abs(pcm).max() > 5000
    again = synthesize("the old baker", voice, random.Random(1))
    assert np.corrcoef(pcm, again)[0, 1] > 0.95  # its hiss differs between calls: espeak-ng keeps a noise generator of its own
    with pytest.raises(ValueError, match="no voice xx"):
        synthesize("hello", Voice("xx", "f1"), random.Random(1))


def test_a_file_of_texts_is_spoken_in_place_of_the_grammars_sentences(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["the  first line", "", *(f"line number {i}" for i in range(9)), "the first line"]))
    assert sorted(read_sentences(str(texts), 10, seed=1))[-1] == "the first line"
    splits = _splits(SyntheticConfig(texts=str(texts), num_train=5, num_dev=1, num_test=2, num_broken=0))
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train/train": 5,
        "dev/dev": 1,
        "test/sentences": 2,
        "test/voices": 2,
    }
    assert len({row.text for rows in splits.values() for row in rows}) == 10
    with pytest.raises(ConfigError, match="has 10 different sentences, not the 11 of all sets"):
        read_sentences(str(texts), 11, seed=1)
    with pytest.raises(ConfigError, match="not a file of UTF-8 text"):
        read_sentences(str(tmp_path), 1, seed=1)


def test_shards_are_deleted_only_where_they_were_made_here_and_others_can_be_made(tmp_path):
    shard = tmp_path / "train/people.parquet"
    shard.parent.mkdir()
    shard.touch()
    with pytest.raises(ConfigError, match="Parquet files that were not made here; name another folder"):
        make_dataset(SyntheticConfig(output_dir=str(tmp_path)))
    (tmp_path / MANIFEST).write_text('{"num_files": 1}')
    with pytest.raises(ConfigError, match="not a file of UTF-8 text"):
        make_dataset(SyntheticConfig(output_dir=str(tmp_path), texts=str(tmp_path / "nowhere.txt")))
    assert shard.exists()
