"""Recordings of any length are cut at pauses into windows that keep their places, in memory that a window bounds."""

import random
from itertools import pairwise

import numpy as np
import pytest

from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.windows import Splitter, windows
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize

RATE = 16_000
SENTENCES = ("the old baker carried seven lemons past a quiet river", "an elephant snored", "she knew the port and the hill")


@pytest.fixture(scope="module")
def sentences() -> list[np.ndarray]:
    spoken = [synthesize(text, held_out_voices()[i], random.Random(i)) for i, text in enumerate(SENTENCES)]
    return [pcm[np.flatnonzero(np.abs(pcm) > 300)[0] : np.flatnonzero(np.abs(pcm) > 300)[-1] + 1] for pcm in spoken]


@pytest.fixture(scope="module")
def ten_minutes(sentences) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Ten minutes of sentences with pauses of 0.4 to 5 s between them, and where each begins and ends."""
    rng, pieces, places, length = np.random.default_rng(0), [], [], 0
    while length < 600 * RATE:
        pause, sentence = np.zeros(int(rng.uniform(0.4, 5.0) * RATE), np.int16), sentences[len(places) % len(sentences)]
        places.append((length + len(pause), length + len(pause) + len(sentence)))
        pieces, length = [*pieces, pause, sentence], places[-1][1]
    return np.concatenate(pieces), places


def pieces(pcm: np.ndarray, num_samples: int) -> list[np.ndarray]:
    return [pcm[start : start + num_samples] for start in range(0, len(pcm), num_samples)]


@pytest.mark.parametrize(("minutes", "max_s", "join_pause_ms"), [(10, 28, 2000), (1, 6, 0)])
def test_windows_hold_all_speech_and_keep_their_places_to_the_end(ten_minutes, minutes, max_s, join_pause_ms):
    pcm, places = ten_minutes
    places = [place for place in places if place[1] < 60 * minutes * RATE]
    pcm = pcm[: places[-1][1]]
    cut = list(windows(pieces(pcm, 50_000), max_s * RATE, VadConfig(join_pause_ms=join_pause_ms)))
    assert all(np.array_equal(window.pcm, pcm[window.start : window.start + len(window.pcm)]) for window in cut)
    assert all(len(window.pcm) <= max_s * RATE for window in cut)
    assert all(a.start + len(a.pcm) <= b.start for a, b in pairwise(cut))
    heard = np.zeros(len(pcm), bool)
    for window in cut:
        heard[window.start : window.start + len(window.pcm)] = True
    assert all(heard[start:stop].mean() > 0.95 for start, stop in places)
    begins, ends = np.array(places).T / RATE
    late = [(window.speech_start / RATE, window.speech_stop / RATE) for window in cut[-5:]]
    assert len(late) == 5
    assert late[-1][1] > 60 * minutes - 15
    assert all(np.abs(begins - start).min() < 0.1 and np.abs(ends - stop).min() < 0.2 for start, stop in late)


def test_windows_do_not_depend_on_the_pieces_and_keep_no_more_than_one(ten_minutes):
    pcm = ten_minutes[0][: 25 * RATE]
    whole, splitter, cut, most = list(windows([pcm], 10 * RATE, VadConfig())), Splitter(10 * RATE, VadConfig()), [], 0
    for piece in pieces(pcm, 777):
        cut += splitter.add(piece)
        most = max(most, len(splitter.buffer))
    cut += splitter.finish()
    assert [(w.start, len(w.pcm), w.speech_start) for w in cut] == [(w.start, len(w.pcm), w.speech_start) for w in whole]
    assert most <= 13 * RATE


def test_speech_without_a_pause_is_cut_where_it_is_quietest(sentences):
    speech = np.concatenate(sentences * 4)
    speech[3 * RATE : 3 * RATE + 640] = 0  # too short for a pause
    first, *rest = windows([speech], 4 * RATE, VadConfig())
    assert abs(first.speech_stop - (3 * RATE + 320)) < 320
    assert all(a.start + len(a.pcm) == b.start for a, b in pairwise([first, *rest]))
    assert sum(len(window.pcm) for window in [first, *rest]) > 0.98 * len(speech)


@pytest.mark.parametrize("padding_ms", [0, 5000])
def test_the_shortest_windows_hold_speech_whatever_their_padding(sentences, padding_ms):
    speech = np.concatenate(sentences)
    cut = list(windows([speech], RATE, VadConfig(prefix_padding_ms=padding_ms)))
    assert all(0 < len(window.pcm) <= RATE and window.speech_start < window.speech_stop for window in cut)
    assert sum(len(window.pcm) for window in cut) > 0.9 * len(speech)


def test_silence_has_no_windows_and_a_bounded_memory():
    splitter = Splitter(10 * RATE, VadConfig())
    assert [window for _ in range(20) for window in splitter.add(np.zeros(RATE, np.int16))] == []
    assert len(splitter.buffer) < RATE
    assert list(splitter.finish()) == list(windows([], RATE, VadConfig())) == []
