"""A realtime session by itself: events in, events and turns out. The detector and the speech are real."""

import base64
import io
import json
import random
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import soxr

from tiny_audio.audio.vad import speech_detector
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize
from tiny_audio.serving.offer import Offer
from tiny_audio.serving.realtime.session import Session
from tiny_audio.serving.realtime.sound import FORMATS, Decoder

OFFER = Offer(["tiny_audio", "whisper-1"], ["second"], {"en": "english"})
RATE, PCM_RATE = 16_000, 24_000
SENTENCES = ("the old baker carried seven lemons past a quiet river", "she knew the port and the hill")


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    """Two sentences at 16 kHz, without silence around them."""
    made = [synthesize(text, held_out_voices()[i], random.Random(i)) for i, text in enumerate(SENTENCES)]
    return [pcm[np.flatnonzero(np.abs(pcm) > 300)[0] : np.flatnonzero(np.abs(pcm) > 300)[-1] + 1] for pcm in made]


def as_pcm(pcm: np.ndarray) -> bytes:
    """Writes 16-kHz samples as a client sends them: PCM16 at 24 kHz."""
    return soxr.resample(pcm, RATE, PCM_RATE).astype("<i2").tobytes()


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.int16)


def append(data: bytes, **fields) -> dict:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode(), **fields}


def update(**of_input) -> dict:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": of_input}}}


COMMIT, CLEAR = {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}
MANUAL = update(turn_detection=None)


def take(session: Session, *events: dict) -> list[dict]:
    """Gives a session events, and the detector what it then wants heard; returns its answers."""
    answers = []
    for event in events:
        answers += session.receive(json.dumps(event))
        while (samples := session.unheard()) is not None:
            probabilities, state = speech_detector()(samples[None], session.vad_state)
            answers += session.heard(probabilities[0], state)
    return answers


def stream(session: Session, data: bytes, piece: int = 4800) -> list[dict]:
    """Sends sound in pieces of 100 ms, or of other lengths."""
    return take(session, *(append(data[start : start + piece]) for start in range(0, len(data), piece)))


def kinds(events: list[dict]) -> list[str]:
    return [event["type"].removeprefix("input_audio_buffer.").removeprefix("conversation.") for event in events]


NEW_ITEM = ["committed", "item.created", "item.added", "item.done"]


@pytest.mark.parametrize("piece", [960, 4801, 10**7])
def test_speech_becomes_turns_at_its_places_however_it_is_cut(spoken, piece):
    session, (first, second) = Session(OFFER), spoken
    said = np.concatenate([silence(1.3), first, silence(2), second, silence(1)])
    events = stream(session, as_pcm(said), piece)
    assert kinds(events) == ["speech_started", "speech_stopped", *NEW_ITEM] * 2
    starts_ms = [event["audio_start_ms"] for event in events if "audio_start_ms" in event]
    ends_ms = [event["audio_end_ms"] for event in events if "audio_end_ms" in event]
    begins = [1300, 1300 + len(first) / 16 + 2000]
    stops = [begins[0] + len(first) / 16, begins[1] + len(second) / 16]
    assert starts_ms == pytest.approx([begin - 300 for begin in begins], abs=100)
    assert ends_ms == pytest.approx([stop + 500 for stop in stops], abs=150)
    ids = [event["item_id"] for event in events if "item_id" in event]
    assert ids == [ids[0]] * 3 + [ids[3]] * 3
    assert [event["previous_item_id"] for event in events if event["type"].endswith("committed")] == [None, ids[0]]
    assert [turn.item_id for turn in session.turns] == [ids[0], ids[3]]
    for turn, begin, stop, start_ms in zip(session.turns, begins, stops, starts_ms, strict=True):
        heard = said[16 * start_ms :][: len(turn.pcm)]
        assert np.corrcoef(heard, turn.pcm)[0, 1] > 0.98  # the sound of that place
        assert start_ms < begin < stop < start_ms + len(turn.pcm) / 16  # and all of what was said
    assert len({event["event_id"] for event in events}) == len(events)


def test_silence_and_clicks_are_no_turns_and_take_no_memory():
    session = Session(OFFER)
    click = np.where(np.arange(800) % 7, 20000, -20000).astype(np.int16)
    assert stream(session, as_pcm(np.concatenate([silence(20), click, silence(20)]))) == []
    assert len(session.buffer) < 2 * RATE


def test_speech_without_a_pause_is_committed_in_the_end(spoken, monkeypatch):
    monkeypatch.setattr("tiny_audio.serving.realtime.session.MAX_TURN_SAMPLES", 2 * RATE)
    session = Session(OFFER)
    events = stream(session, as_pcm(np.concatenate([silence(0.5), *spoken * 3, silence(1)])))
    assert kinds(events) == ["speech_started", "speech_stopped", *NEW_ITEM] * len(session.turns)
    assert all(len(turn.pcm) <= 2 * RATE for turn in session.turns)
    assert sum(len(turn.pcm) for turn in session.turns) > 0.95 * sum(map(len, spoken * 3))


def test_a_client_may_commit_while_somebody_speaks(spoken):
    session = Session(OFFER)
    events = stream(session, as_pcm(np.concatenate([silence(1), spoken[0]])))
    events += take(session, COMMIT)
    assert kinds(events) == ["speech_started", *NEW_ITEM]
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert session.turns[0].is_speech
    assert len(session.turns[0].pcm) >= len(spoken[0])


def test_without_detection_the_client_commits():
    session = Session(OFFER)
    sound = (10_000 * np.sin(np.arange(RATE) / 6)).astype(np.int16)
    assert kinds(take(session, MANUAL)) == ["session.updated"]
    assert stream(session, as_pcm(sound), 961) == []
    events = take(session, COMMIT, append(as_pcm(sound)), CLEAR, append(as_pcm(sound[: RATE // 2])), COMMIT)
    assert kinds(events) == [*NEW_ITEM, "cleared", *NEW_ITEM]
    assert [len(turn.pcm) for turn in session.turns] == pytest.approx([RATE, RATE // 2], abs=2)
    assert np.abs(session.turns[0].pcm[200:-200].astype(int) - sound[200:-200]).max() < 300
    assert events[0]["previous_item_id"] is None
    assert events[5]["previous_item_id"] == events[0]["item_id"]


def test_the_buffer_is_bounded_and_says_what_it_drops(monkeypatch):
    monkeypatch.setattr("tiny_audio.serving.realtime.session.MAX_TURN_SAMPLES", 2 * RATE)
    session = Session(OFFER)
    take(session, MANUAL)
    (error,) = take(session, append(as_pcm(silence(1.5))), append(as_pcm(silence(1)), event_id="mine"))
    assert (error["error"]["code"], error["error"]["event_id"]) == ("input_audio_buffer_full", "mine")
    take(session, COMMIT)
    assert len(session.turns[0].pcm) == pytest.approx(1.5 * RATE, abs=2)


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_telephone_formats_are_what_libsndfile_writes(kind, subtype, spoken):
    file, slow = io.BytesIO(), soxr.resample(spoken[0], RATE, 8000)
    soundfile.write(file, slow, 8000, format="RAW", subtype=subtype)
    expected, _ = soundfile.read(io.BytesIO(file.getvalue()), samplerate=8000, channels=1, format="RAW", subtype=subtype)
    assert np.array_equal(FORMATS[kind].samples(file.getvalue()), expected.astype(np.float32))
    decoder = Decoder(FORMATS[kind])
    pieces = [decoder.add(file.getvalue()[start : start + 333]) for start in range(0, len(file.getvalue()), 333)]
    pcm = np.concatenate([*pieces, decoder.finish()])
    assert np.corrcoef(pcm, spoken[0][: len(pcm)])[0, 1] > 0.95


def test_updates_change_what_they_name_and_keep_the_rest():
    session = Session(OFFER)
    given = session.created()["session"]
    assert (given["type"], given["object"]) == ("transcription", "realtime.transcription_session")
    take(session, update(turn_detection={"threshold": 0.7}), update(format={"type": "audio/pcmu"}))
    (event,) = take(session, update(transcription={"model": "whisper-1", "language": None}))
    of_input = event["session"]["audio"]["input"]
    assert of_input["format"] == {"type": "audio/pcmu", "rate": 8000}
    assert of_input["transcription"]["model"] == "whisper-1"
    detection = of_input["turn_detection"]
    assert (detection["threshold"], detection["prefix_padding_ms"], detection["silence_duration_ms"]) == (0.7, 300, 500)
    (event,) = take(session, MANUAL)
    assert event["session"]["audio"]["input"]["turn_detection"] is None
    (event,) = take(session, update(turn_detection={"type": "server_vad"}))
    assert event["session"]["audio"]["input"]["turn_detection"]["threshold"] == 0.5


def test_the_older_update_is_taken_too():
    session = Session(OFFER)
    flat = {"input_audio_format": "g711_alaw", "turn_detection": None, "input_audio_transcription": {"model": "whisper-1"}}
    (event,) = take(session, {"type": "transcription_session.update", "session": flat})
    assert event["type"] == "transcription_session.updated"
    assert event["session"]["input_audio_format"] == "g711_alaw"
    assert event["session"]["turn_detection"] is None
    assert session.settings.input.format.rate == 8000


REFUSED = [
    (update(turn_detection={"type": "semantic_vad"}), "session.audio.input.turn_detection.type", "server_vad"),
    (update(turn_detection={"threshold": 2}), "session.audio.input.turn_detection.threshold", "less than 1"),
    (update(turn_detection={"create_response": True}), "session.audio.input.turn_detection.create_response", "False"),
    (update(noise_reduction={"type": "near_field"}), "session.audio.input.noise_reduction", "noise"),
    (update(format={"type": "audio/mp3"}), "session.audio.input.format.type", "audio/pcm"),
    (update(format={"type": "audio/pcm", "rate": 16000}), "session.audio.input.format", "24000"),
    (update(transcription={"model": "x"}), "session.audio.input.transcription.model", "tiny_audio"),
    (update(transcription={"language": "de"}), "session.audio.input.transcription.language", "en"),
    (update(transcription={"prompt": "Mrs Dalloway"}), "session.audio.input.transcription.prompt", "without it"),
    (update(echo=True), "session.audio.input.echo", "unknown"),
    ({"type": "session.update", "session": {"type": "realtime"}}, "session.type", "transcription"),
    ({"type": "transcription_session.update", "session": {"input_audio_format": [1]}}, "session.audio.input.format.type", "pcm"),
    ({"type": "session.update"}, "session", "missing"),
    ({"type": "response.create"}, "type", "response.create"),
    ({}, "type", "None"),
    ({"type": "input_audio_buffer.append", "audio": "§"}, "audio", "base64"),
    ({"type": "input_audio_buffer.append"}, "audio", "base64"),
    (COMMIT, None, "0 ms"),
]


@pytest.mark.parametrize(("event", "param", "message"), REFUSED)
def test_what_cannot_be_is_an_error_and_the_session_lives(event, param, message):
    session = Session(OFFER)
    before = session.created()["session"]
    (answer,) = take(session, event | {"event_id": "mine"})
    assert (answer["type"], answer["error"]["event_id"], answer["error"]["param"]) == ("error", "mine", param)
    assert answer["error"]["type"] == "invalid_request_error"
    assert message in answer["error"]["message"]
    assert session.created()["session"] == before
    assert kinds(take(session, CLEAR)) == ["cleared"]


@pytest.mark.parametrize("text", ["", "nonsense", "[1]", "[" * 100_000, '{"type": "\ud800"}'])
def test_what_is_no_event_is_an_error(text):
    (answer,) = list(Session(OFFER).receive(text))
    assert answer["type"] == "error"
    json.dumps(answer, ensure_ascii=False).encode()


def test_times_go_on_after_a_clear(spoken):
    session = Session(OFFER)
    stream(session, as_pcm(silence(5)))
    take(session, CLEAR)
    events = stream(session, as_pcm(np.concatenate([silence(1), spoken[0], silence(1)])))
    starts = [event["audio_start_ms"] for event in events if "audio_start_ms" in event]
    assert starts == pytest.approx([5700], abs=120)
    assert all(a <= b for a, b in pairwise(starts))
