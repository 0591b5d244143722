"""One realtime session: events of the client in, events of the server and turns of speech out. It waits for nothing."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.vad import FRAME_SAMPLES, SpeechSpans, StreamState
from tiny_audio.serving.errors import APIError
from tiny_audio.serving.offer import Offer
from tiny_audio.serving.realtime.events import error_event, event, item_events, new_id
from tiny_audio.serving.realtime.settings import as_flat, first_settings, from_flat, updated_settings
from tiny_audio.serving.realtime.sound import Decoder

MAX_TURN_SAMPLES = 300 * SAMPLE_RATE  # 9.2 MiB: the most sound that a session holds, besides one event's
MIN_COMMIT_SAMPLES = SAMPLE_RATE // 10  # as at OpenAI
FRAMES_AT_ONCE = 3, 64  # that the detector hears: fewer cost too much each, more keep others waiting


@dataclass(frozen=True)
class Turn:
    """Holds the sound of an item that was committed, (S,) int16 at 16 kHz, and whether speech was found in it already.

    `model` is one of the further models, or None for the first; `with_logprobs` says whether the client wants its tokens' too.
    """

    item_id: str
    pcm: np.ndarray
    is_speech: bool
    model: str | None
    with_logprobs: bool
    committed_at: float = field(default_factory=time.monotonic)  # seconds of that clock


class Session:
    """Follows one client. All places in sound count samples at 16 kHz from the session's beginning.

    Raises:
        APIError: there is no such model.
    """

    def __init__(self, offer: Offer, model: str | None = None, expires_at: int = 0):
        self.id, self.offer, self.expires_at = new_id("sess"), offer, expires_at
        self.settings = first_settings(offer, model)
        self.decoder = Decoder(self.settings.audio_format)
        self.buffer, self.buffer_start = bytearray(), 0  # int16 samples that no item has yet, and the place of the first
        self.committed = 0  # sound before this place is in an item, or was cleared
        self.item_id: str | None = None  # of the speech that goes on
        self.last_item_id: str | None = None
        self.turns: list[Turn] = []  # committed; whoever transcribes them takes them out
        self._listen()

    @property
    def stop(self) -> int:
        """The place behind all sound so far."""
        return self.buffer_start + len(self.buffer) // 2

    def created(self) -> dict[str, Any]:
        """Makes the first event of the session."""
        return event("session.created", session=self._described())

    def receive(self, text: str) -> Iterator[dict[str, Any]]:
        """Takes an event of the client in JSON; yields what it is answered."""
        event_id = None
        try:
            given = _parsed(text)
            event_id = given.get("event_id")
            match given.get("type"):
                case "input_audio_buffer.append":
                    self._append(given.get("audio"))
                case "input_audio_buffer.commit":
                    yield from self._commit()
                case "input_audio_buffer.clear":
                    self._flush()
                    self._forget_all()
                    yield event("input_audio_buffer.cleared")
                case "session.update":
                    self._update(given.get("session"))
                    yield event("session.updated", session=self._described())
                case "transcription_session.update":
                    self._update(from_flat(given.get("session")))
                    flat = {"id": self.id, "object": "realtime.transcription_session"} | as_flat(self.settings)
                    yield event("transcription_session.updated", session=flat)
                case kind:
                    raise APIError(400, f"type: a transcription session has no event {kind!r}", "invalid_value", "type")
        except APIError as error:
            yield error_event(error, event_id if isinstance(event_id, str) else None)

    def unheard(self) -> np.ndarray | None:
        """Returns the next whole frames for the voice activity detector, (S,); None if there are too few, or it is off."""
        if self.spans is None:
            return None
        fewest, most = FRAMES_AT_ONCE
        num_frames = (self.stop - self.spans.num_samples) // FRAME_SAMPLES
        start = self.spans.num_samples
        return self._sound(start, start + min(num_frames, most) * FRAME_SAMPLES) if num_frames >= fewest else None

    def heard(self, probabilities: np.ndarray, state: StreamState) -> Iterator[dict[str, Any]]:
        """Takes what the detector made of `unheard`: (T,) probabilities of speech, and its state. Yields events."""
        self.vad_state = state
        for probability in probabilities:
            span = self.spans.add(probability)
            if span and self.item_id:
                yield from self._stopped(span[1] + min(self._padding, self.spans.num_samples - span[1]))
            elif self.spans.is_speech and not self.item_id:
                self.item_id, self.turn_start = new_id("item"), max(self.spans.began - self._padding, self.committed)
                start_ms = _ms(self.turn_start)
                yield event("input_audio_buffer.speech_started", item_id=self.item_id, audio_start_ms=start_ms)
            elif self.item_id and self.spans.num_samples - self.turn_start > MAX_TURN_SAMPLES - FRAME_SAMPLES:
                self.spans.finish()
                yield from self._stopped(self.spans.num_samples)
        begun = self.spans.num_samples if self.spans.began is None else self.spans.began
        self._forget(self.turn_start if self.item_id else begun - self._padding)

    def _stopped(self, speech_stop: int) -> Iterator[dict[str, Any]]:
        """Ends the turn that goes on; the model hears it up to `speech_stop`, and the pause behind it is dropped."""
        end_ms = _ms(self.spans.num_samples)
        yield event("input_audio_buffer.speech_stopped", item_id=self.item_id, audio_end_ms=end_ms)
        yield from self._add_item(self.item_id, self._sound(self.turn_start, speech_stop), is_speech=True)
        self._forget(self.spans.num_samples)
        self.committed, self.item_id = self.spans.num_samples, None

    def _append(self, audio: Any) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise APIError(400, "audio: is not base64", "invalid_value", "audio") from None
        num_samples = len(data) // self.settings.audio_format.sample_bytes * SAMPLE_RATE // self.settings.audio_format.rate
        if self.spans is None and len(self.buffer) // 2 + num_samples > MAX_TURN_SAMPLES:
            seconds = MAX_TURN_SAMPLES // SAMPLE_RATE
            message = f"the buffer holds {seconds} s at most, and this event's audio was dropped: commit, or clear"
            raise APIError(400, message, "input_audio_buffer_full", "audio")
        self.buffer += self.decoder.add(data).tobytes()

    def _flush(self) -> None:
        """Puts into the buffer what the decoder still held back."""
        self.buffer += self.decoder.finish().tobytes()

    def _commit(self) -> Iterator[dict[str, Any]]:
        self._flush()
        num_samples = self.stop - self.committed
        if num_samples < MIN_COMMIT_SAMPLES:
            message = f"the buffer has {_ms(num_samples)} ms of audio, and an item wants {_ms(MIN_COMMIT_SAMPLES)} ms"
            raise APIError(400, message, "input_audio_buffer_commit_empty")
        start = self.turn_start if self.item_id else self.buffer_start
        pcm, is_speech = self._sound(start, self.stop), self.item_id is not None
        yield from self._add_item(self.item_id or new_id("item"), pcm, is_speech)
        self._forget_all()

    def _add_item(self, item_id: str, pcm: np.ndarray, is_speech: bool) -> Iterator[dict[str, Any]]:
        yield event("input_audio_buffer.committed", item_id=item_id, previous_item_id=self.last_item_id)
        yield from item_events(item_id, self.last_item_id)
        self.last_item_id = item_id
        model = self.offer.further_model(self.settings.input.transcription.model)
        self.turns.append(Turn(item_id, pcm, is_speech, model, bool(self.settings.include)))

    def _update(self, given: Any) -> None:
        if not isinstance(given, dict):
            raise APIError(400, "session: is missing", "invalid_value", "session")
        before, self.settings = self.settings, updated_settings(self.offer, self.settings, given)
        if self.settings.audio_format != before.audio_format:
            self._flush()
            self.decoder = Decoder(self.settings.audio_format)
        if self.settings.input.turn_detection != before.input.turn_detection:
            self._listen()

    def _listen(self) -> None:
        """Has the detector begin anew with the sound that comes next, if it is on."""
        detection, self.item_id, self.turn_start = self.settings.input.turn_detection, None, self.stop
        self.spans = SpeechSpans(detection.vad(), num_samples=self.stop) if detection else None
        self.vad_state = StreamState.start()

    def _forget_all(self) -> None:
        self._forget(self.stop)
        self.committed = self.stop
        self._listen()

    def _forget(self, start: int) -> None:
        """Drops the sound before a place."""
        num_samples = max(0, start - self.buffer_start)
        del self.buffer[: 2 * num_samples]
        self.buffer_start += num_samples

    def _sound(self, start: int, stop: int) -> np.ndarray:
        return np.frombuffer(bytes(self.buffer[2 * (start - self.buffer_start) : 2 * (stop - self.buffer_start)]), np.int16)

    @property
    def _padding(self) -> int:
        return self.settings.input.turn_detection.prefix_padding_ms * SAMPLE_RATE // 1000

    def _described(self) -> dict[str, Any]:
        about = {"id": self.id, "object": "realtime.transcription_session", "expires_at": self.expires_at}
        return about | self.settings.model_dump()


def _ms(num_samples: int) -> int:
    return num_samples * 1000 // SAMPLE_RATE


def _parsed(text: str) -> dict[str, Any]:
    """Returns an event of the client.

    Raises:
        APIError: it is no JSON object.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"this is no JSON: {error}", "invalid_json") from None
    if not isinstance(given, dict):
        raise APIError(400, "an event is a JSON object", "invalid_json")
    return given
