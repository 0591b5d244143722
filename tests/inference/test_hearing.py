"""Word times and second opinions, of letters as they are and of speech whose words have known beginnings."""

import random

import numpy as np
import pytest
import torch

from tests.conftest import tone
from tiny_audio.inference.hearing import DOUBTFUL, FRAME_S, LETTER_DELAY_S, Word, align_words, disagreement
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.lab.synthetic.sentences import Grammar
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize, synthesize_words
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.ctc_head import NUM_CLASSES, heard_text, spelled


def letters_of(frames: str) -> torch.Tensor:
    """The log-probabilities of a clip that sounds like these letters, one a frame; - is a blank."""
    scores = torch.full((len(frames), NUM_CLASSES), 0.01)
    for place, letter in enumerate(frames):
        scores[place, 0 if letter == "-" else spelled(letter)[0]] = 1.0
    return (scores / scores.sum(dim=1, keepdim=True)).log()


def frames_of(words: list[Word]) -> list[tuple[str, int, int]]:
    return [(word.text, round((word.start_s + LETTER_DELAY_S) / FRAME_S), round(word.end_s / FRAME_S)) for word in words]


def test_words_begin_at_their_first_letter_and_end_at_the_space_behind_them():
    letters = letters_of("----t-hh-e----- -o-ll-d---")
    assert heard_text(letters) == "the old"
    assert frames_of(align_words("The old,", letters)) == [("The", 4, 15), ("old,", 17, 23)]


def test_a_word_that_the_alphabet_lacks_stands_between_its_neighbours():
    words = align_words("the 42 old", letters_of("--t-h-e-- -f-o-r-t-y- --o-l-d--"))
    assert [word.text for word in words] == ["the", "42", "old"]
    assert words[1].start_s >= words[0].end_s
    assert words[1].end_s <= words[2].start_s + FRAME_S
    assert words[2].start_s == pytest.approx(24 * FRAME_S - LETTER_DELAY_S)


@pytest.mark.parametrize(("text", "words"), [("", []), ("日本 42", None), ("more letters than frames", None)])
def test_a_text_that_cannot_be_found_in_a_clip_has_no_times(text, words):
    assert align_words(text, letters_of("--h-i--")) == words


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("The old.", "the old", 0.0),
        ("", "", 0.0),
        ("thank you", "", 1.0),
        ("", "hello", 1.0),
        ("", "r", 1 / 3),
        ("abcd", "abxd", 0.25),
        ("日本", "a", None),
    ],
)
def test_texts_are_compared_by_their_letters(text, heard, expected):
    assert disagreement(text, heard) == expected


def test_the_embedded_encoders_head_knows_when_words_were_said(model):
    """On voices that neither it nor its head was trained on; espeak-ng tells when it says each word."""
    rng, voices = random.Random(7), held_out_voices()
    texts = [Grammar(rng).sentence() for _ in range(12)]
    spoken = [synthesize_words(text, rng.choice(voices), rng) for text in texts]
    spoken = [(text, pcm, starts_s) for text, (pcm, starts_s) in zip(texts, spoken, strict=True) if len(pcm) <= 8 * 16_000]
    transcriber = Transcriber(model)
    answers = [transcriber.submit(pcm) for _, pcm, _ in spoken]
    transcriber.engine.run()
    errors_s = []
    for (text, _, starts_s), answer in zip(spoken, answers, strict=True):
        letters = answer.result().letters
        assert disagreement(text, heard_text(letters)) < DOUBTFUL / 3  # the words were heard
        words = align_words(text, letters)
        assert [word.text for word in words] == text.split()
        errors_s += [abs(word.start_s - start_s) for word, start_s in zip(words, starts_s, strict=True) if start_s is not None]
    assert len(errors_s) > 60
    assert np.median(errors_s) <= 0.02
    assert np.quantile(errors_s, 0.95) <= 0.08


def test_a_text_that_nobody_said_is_doubtful(model):
    """The fixture's projector is untrained: it writes the same words whatever it hears."""
    transcriber = Transcriber(model)
    pcm = synthesize("the old baker carried seven lemons", held_out_voices()[0], random.Random(1))
    of_speech, of_silence = transcriber([pcm, np.zeros(16_000, np.int16)])
    assert disagreement("the old baker carried seven lemons", of_speech.heard) < 0.2
    assert of_speech.doubtful
    assert of_silence.heard == ""
    assert of_silence.doubtful == bool(of_silence.text)
    assert (of_speech.words, of_silence.words) == (None, None)


def test_a_model_without_a_head_has_no_opinion(hub_folders):
    encoder, decoder = hub_folders
    transcriber = Transcriber(ASRModel(ASRConfig(audio_model_id=encoder, text_model_id=decoder, max_new_tokens=8)))
    assert not transcriber.describe()["word_times"]
    (transcript,) = transcriber([tone(1.0)], with_words=True)
    assert (transcript.heard, transcript.words, transcript.doubtful) == (None, None, False)
