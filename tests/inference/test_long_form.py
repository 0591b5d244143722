"""The windows of a recording are rows of one batch, and come back as segments in order; a caller who leaves frees the engine."""

import numpy as np
import pytest

from tests.conftest import tone
from tiny_audio.audio.windows import Window
from tiny_audio.inference.long_form import transcribe_windows
from tiny_audio.inference.transcriber import Transcriber

CUT = [
    Window(start, tone(0.5 + 0.25 * number, 200 + 150 * number), start + 1600, start + 8000)
    for number, start in enumerate(range(0, 160_000, 32_000))
]


@pytest.fixture(scope="module")
def transcriber(model):
    transcriber = Transcriber(model, max_slots=4)
    transcriber.engine.start()
    yield transcriber
    transcriber.engine.close()


def test_segments_come_in_order_with_the_texts_of_their_windows(transcriber):
    alone = [transcriber([window.pcm], with_words=True)[0] for window in CUT]
    segments = list(transcribe_windows(transcriber, iter(CUT)))
    assert [segment.transcript.text for segment in segments] == [transcript.text for transcript in alone]
    assert any(transcript.words for transcript in alone[1:])
    for number, (segment, transcript) in enumerate(zip(segments, alone, strict=True)):
        words = transcript.words and [word.later(2.0 * number) for word in transcript.words]
        assert segment.transcript.words == words  # on the recording's clock
    assert [(segment.start_s, segment.end_s) for segment in segments] == [(2.0 * i + 0.1, 2.0 * i + 0.5) for i in range(5)]
    assert transcriber.engine.scheduler.most_live > 1
    assert list(transcribe_windows(transcriber, iter([]))) == []


def test_windows_are_taken_as_there_is_room_and_left_when_the_caller_leaves(transcriber, monkeypatch):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield Window(0, np.zeros(8000, np.int16), 0, 8000)

    futures, submit = [], transcriber.submit
    monkeypatch.setattr(transcriber, "submit", lambda pcm: futures.append(submit(pcm)) or futures[-1])
    segments = transcribe_windows(transcriber, endless(), windows_at_once=40)
    next(segments)
    assert len(taken) <= 40
    segments.close()
    assert all(future.done() for future in futures)  # with four slots, most were waiting
    assert transcriber([tone(0.5)])  # the engine goes on
