"""Cuts recordings of any length at their pauses, into windows that a model takes; keeps no more of a recording than a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.config import VadConfig
from tiny_audio.audio.vad import FRAME_SAMPLES, SpeechSpans, StreamState, speech_detector

LONGEST_WINDOW_S = 28.0  # of an encoder that takes 30 s: most training clips are shorter (LoquaciousSet's mean is 8.7 s)
CUT_SEARCH_SAMPLES = 2 * SAMPLE_RATE  # stretch at a window's end in which speech without a pause is cut, where it is quietest
SAMPLES_AT_ONCE = 64 * FRAME_SAMPLES  # that the detector hears: 2 s are as fast as any number, and small in the cache
FIRST_SAMPLES = 8 * FRAME_SAMPLES  # of a clip, 0.26 s: see `_probabilities`
QUIET_SAMPLES = SAMPLE_RATE // 50  # 20 ms


@dataclass(frozen=True)
class Window:
    """Holds a stretch of a recording: (S,) int16 at 16 kHz from sample `start` of it, and where the speech in it lies.

    All of `start`, `speech_start` and `speech_stop` count samples from the recording's beginning.
    """

    start: int
    pcm: np.ndarray
    speech_start: int
    speech_stop: int

    @property
    def offset_s(self) -> float:
        """Second of the recording at which the window's sound begins."""
        return self.start / SAMPLE_RATE

    @property
    def start_s(self) -> float:
        """Second of the recording at which the speech in it begins."""
        return self.speech_start / SAMPLE_RATE

    @property
    def end_s(self) -> float:
        """Second of the recording at which the speech in it ends."""
        return self.speech_stop / SAMPLE_RATE


def window_samples(max_duration_s: float) -> int:
    """Returns the longest window for a model whose encoder takes `max_duration_s`, in samples."""
    return int(min(max_duration_s, LONGEST_WINDOW_S) * SAMPLE_RATE)


def has_speech(pcm: np.ndarray, config: VadConfig) -> bool:
    """Says whether a clip of (S,) int16 at 16 kHz has speech; listens no further than that takes, most often half a second."""
    spans = SpeechSpans(config)
    return any(spans.add(probability) or spans.is_speech for probability in _probabilities(pcm)) or bool(spans.finish())


def whole_clip(pcm: np.ndarray, skip_silence: bool, config: VadConfig) -> list[Window]:
    """Returns a clip as its one window; none where `skip_silence` is set and nothing is said in it."""
    is_heard = not skip_silence or has_speech(pcm, config)
    return [Window(0, pcm, 0, len(pcm))] if is_heard else []


def _probabilities(pcm: np.ndarray) -> Iterator[float]:
    """Yields how likely each frame of a clip is speech. Hears little at first: most clips begin with speech, which is enough."""
    state, start, num_samples = StreamState.start(), 0, FIRST_SAMPLES
    while start < len(pcm):
        frames = pcm[start : start + num_samples]
        probabilities, state = speech_detector()(np.pad(frames, (0, -len(frames) % FRAME_SAMPLES))[None], state)
        yield from probabilities[0]
        start, num_samples = start + num_samples, min(2 * num_samples, SAMPLES_AT_ONCE)


class Splitter:
    """Takes a recording piece by piece, and yields its windows as soon as their ends are known.

    A window joins spans of speech as long as they fit and `join_pause_ms` allows, and has `prefix_padding_ms` of sound before
    and behind. It ends in a pause; speech that fills a window without one is cut at its quietest 20 ms.
    """

    def __init__(self, max_samples: int, config: VadConfig):
        self.max_samples = max_samples
        padding, self.join_pause = (x * SAMPLE_RATE // 1000 for x in (config.prefix_padding_ms, config.join_pause_ms))
        self.padding = min(padding, max_samples // 4)  # so that a window has room for speech, and for a search of its end
        self.spans, self.state = SpeechSpans(config), StreamState.start()
        self.buffer, self.buffer_start = np.zeros(0, np.int16), 0  # sound that a window may still need
        self.speech: tuple[int, int] | None = None  # spans that the next window has so far
        self.taken = 0  # sound before this sample is in a window already

    def add(self, pcm: np.ndarray) -> Iterator[Window]:
        """Takes the next (S,) int16 samples; yields the windows that end in them."""
        for start in range(0, len(pcm), SAMPLES_AT_ONCE):
            self.buffer = np.concatenate([self.buffer, pcm[start : start + SAMPLES_AT_ONCE]])
            yield from self._listen()
            self._forget()

    def finish(self) -> Iterator[Window]:
        """Takes the recording's end; yields the window that was open, if there is one."""
        stop = self.buffer_start + len(self.buffer)
        self.buffer = np.pad(self.buffer, (0, (self.spans.num_samples - stop) % FRAME_SAMPLES))
        yield from self._listen()
        self.buffer = self.buffer[: stop - self.buffer_start]
        if span := self.spans.finish():
            self._join(span)
        if self.speech:
            yield self._window(self.speech[0], min(self.speech[1], stop), stop)

    def _listen(self) -> Iterator[Window]:
        """Hears all whole frames that were not heard yet."""
        unheard = self.buffer[self.spans.num_samples - self.buffer_start :]
        unheard = unheard[: len(unheard) // FRAME_SAMPLES * FRAME_SAMPLES]
        if len(unheard):
            probabilities, self.state = speech_detector()(unheard[None], self.state)
            for probability in probabilities[0]:
                if span := self.spans.add(probability):
                    self._join(span)
                yield from self._ended()

    def _join(self, span: tuple[int, int]) -> None:
        self.speech = (self.speech[0] if self.speech else span[0], span[1])

    def _ended(self) -> Iterator[Window]:
        """Yields the window that cannot take another frame, or that a long pause has ended."""
        now, began = self.spans.num_samples, self.spans.began
        if self.speech and began is not None and not self._fits(self.speech[0], now):
            yield self._window(*self.speech, sum((self.speech[1], began)) // 2)
        if not self.speech and began is not None and not self._fits(began, now):
            cut = self._quietest(now)
            yield self._window(began, cut, cut)
            self.spans.began = cut
        if self.speech and began is None and now - self.speech[1] > self.join_pause:
            yield self._window(*self.speech, now)

    def _fits(self, speech_start: int, now: int) -> bool:
        """Says whether a window from there may go on for another frame."""
        return now + FRAME_SAMPLES + self.padding - max(speech_start - self.padding, self.taken) <= self.max_samples

    def _quietest(self, now: int) -> int:
        """Returns the middle of the quietest 20 ms shortly before the sample `now`."""
        stretch = min(CUT_SEARCH_SAMPLES, self.max_samples // 4) // QUIET_SAMPLES * QUIET_SAMPLES
        sound = self.buffer[now - stretch - self.buffer_start :][:stretch].astype(np.float32)
        energy = np.square(sound.reshape(-1, QUIET_SAMPLES)).sum(axis=1)
        return now - stretch + int(energy.argmin()) * QUIET_SAMPLES + QUIET_SAMPLES // 2

    def _window(self, speech_start: int, speech_stop: int, stop: int) -> Window:
        """Makes the window of a stretch of speech, padded on both sides, but no further than sample `stop`."""
        start, stop = max(speech_start - self.padding, self.taken), min(speech_stop + self.padding, stop)
        self.speech, self.taken = None, stop
        pcm = self.buffer[start - self.buffer_start : stop - self.buffer_start].copy()
        return Window(start, pcm, speech_start, speech_stop)

    def _forget(self) -> None:
        """Drops sound that no window will need."""
        first = next((x for x in (self.speech and self.speech[0], self.spans.began) if x is not None), self.spans.num_samples)
        start = max(self.buffer_start, min(first - self.padding, self.spans.num_samples))
        self.buffer, self.buffer_start = self.buffer[start - self.buffer_start :], start


def windows(chunks: Iterable[np.ndarray], max_samples: int, config: VadConfig) -> Iterator[Window]:
    """Cuts a recording into windows, in order; one without speech has none.

    Args:
        chunks: the recording as (S,) int16 at 16 kHz, in pieces of any length; read as windows are asked for.
        max_samples: the longest window, as `window_samples` gives it for a model.
        config: what counts as speech.
    """
    splitter = Splitter(max_samples, config)
    for chunk in chunks:
        yield from splitter.add(chunk)
    yield from splitter.finish()
