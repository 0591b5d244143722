"""Recordings longer than the model's window: cut at pauses, with true times, in line with all other clips."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from tests.serving.conftest import GOOD, WINDOW_S, audio_file, refusal, tone, transcribe
from tests.serving.test_api import CAPACITY
from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.windows import Window, windows
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize
from tiny_audio.serving import answers

SENTENCES = ("the old baker carried seven lemons past a quiet river", "she knew the port and the hill")
LONG_S = 300
SERVER_VAD = {"type": "server_vad", "silence_duration_ms": 300}


def recording(length_s: float, starts_s: list[float]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Speaks sentences at the given times; returns the sound, and where each begins and ends."""
    pcm, places = np.zeros(int(length_s * SAMPLE_RATE), np.int16), []
    for number, start_s in enumerate(starts_s):
        spoken = synthesize(SENTENCES[number % 2], held_out_voices()[number % 2], random.Random(number))
        heard, start = np.flatnonzero(np.abs(spoken) > 300), int(start_s * SAMPLE_RATE)
        spoken = spoken[heard[0] : heard[-1] + 1]
        pcm[start : start + len(spoken)] = spoken
        places.append((start_s, start_s + len(spoken) / SAMPLE_RATE))
    return pcm, places


@pytest.fixture(scope="module")
def long() -> tuple[bytes, list[tuple[float, float]], list[Window]]:
    """Five minutes with a sentence every quarter of a minute; with its sentences' places and its windows."""
    pcm, places = recording(LONG_S, [2.4 + 14.9 * number for number in range(20)])
    return audio_file(pcm, format="FLAC"), places, list(windows([pcm], WINDOW_S * SAMPLE_RATE, VadConfig()))


def test_a_long_recording_is_cut_at_pauses_and_keeps_its_times(client, long):
    data, places, cut = long
    answer = transcribe(client, data, response_format="verbose_json")
    assert answer.duration == LONG_S
    times = [(segment.start, segment.end) for segment in answer.segments]
    errors = np.subtract(times, places)
    assert np.abs(errors).max() < 0.15
    assert np.abs(errors[-5:].mean(axis=0) - errors[:5].mean(axis=0)).max() < 0.05  # as true at the end as at the beginning
    texts = [transcribe(client, audio_file(window.pcm)).text for window in cut]
    assert [segment.text for segment in answer.segments] == texts
    assert answer.text == " ".join(texts)
    last = transcribe(client, data, response_format="srt").splitlines()[-2]
    assert last.startswith(f"00:04:{times[-1][0] - 240:06.3f}".replace(".", ","))


def test_a_stream_brings_window_after_window(client, long):
    *events, done = transcribe(client, long[0], stream=True, response_format="verbose_json")
    segments = [event for event in events if event.type == "transcript.text.segment"]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert [segment.id for segment in segments] == [str(number) for number in range(len(long[1]))]
    assert "".join(deltas) == done.text == " ".join(segment.text for segment in segments)
    assert done.usage.seconds == LONG_S
    assert events.index(segments[0]) < events.index(segments[-1]) - len(segments)  # they came one by one
    assert sum(bool(segment.words) for segment in segments) > len(segments) / 2
    for segment in segments:
        assert all(segment.start - 0.5 <= word["start"] <= word["end"] <= segment.end + 0.5 for word in segment.words)


def test_server_vad_makes_each_turn_a_segment(client):
    pcm, places = recording(7, [0.5, 4.3])
    one = transcribe(client, audio_file(pcm), response_format="verbose_json", chunking_strategy="auto")
    assert [(segment.start, segment.end) for segment in one.segments] == [(0.0, 7.0)]
    two = transcribe(client, audio_file(pcm), response_format="verbose_json", chunking_strategy=SERVER_VAD)
    assert np.abs(np.subtract([(segment.start, segment.end) for segment in two.segments], places)).max() < 0.15
    deaf = SERVER_VAD | {"silence_duration_ms": 5000}
    assert len(transcribe(client, audio_file(pcm), response_format="verbose_json", chunking_strategy=deaf).segments) == 1


@pytest.mark.parametrize(
    ("seconds", "options"), [(1, {"chunking_strategy": "auto"}), (1, {"chunking_strategy": SERVER_VAD}), (30, {})]
)
def test_without_speech_there_is_no_text_and_no_decoding(client, seconds, options):
    data = audio_file(tone(440, seconds), format="FLAC")
    answer = transcribe(client, data, **options)
    assert (answer.text, answer.usage.total_tokens, answer.usage.seconds) == ("", 0, seconds)
    (done,) = transcribe(client, data, stream=True, **options)
    assert (done.type, done.text) == ("transcript.text.done", "")
    assert transcribe(client, data, response_format="vtt", **options) == "WEBVTT\n\n"


def test_a_recording_over_the_limit_is_refused(client):
    error = refusal(transcribe, client, audio_file(np.zeros(601 * SAMPLE_RATE), format="FLAC"))
    assert (error["status"], error["code"], error["param"]) == (400, "too_long", "file")
    assert "longest taken is 600 s" in error["message"]


def test_a_stream_begins_in_time_whatever_its_first_piece_takes(monkeypatch):
    monkeypatch.setattr(answers, "HEARTBEAT_S", 0.05)

    async def events():
        await asyncio.sleep(0.12)
        yield "event"

    async def sent() -> list[str]:
        return [event async for event in answers.with_heartbeats(events())]

    assert asyncio.run(sent()) == [answers.HEARTBEAT, answers.HEARTBEAT, "event"]


def test_a_recording_that_was_taken_on_waits_in_line(client, long):
    """Others fill the queue while its windows come."""
    events = iter(transcribe(client, long[0], stream=True))
    texts = [next(events).delta]

    def outcome(_) -> str:
        try:
            return transcribe(client, GOOD).text
        except openai.RateLimitError as error:
            return error.code

    with ThreadPoolExecutor(3 * CAPACITY) as pool:
        outcomes = pool.map(outcome, range(3 * CAPACITY))
        *deltas, done = events
    assert "".join(texts + [event.delta for event in deltas]) == done.text
    assert "rate_limit_exceeded" in set(outcomes)
