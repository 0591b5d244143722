"""What a transcription answers with: JSON, text, subtitles, or server-sent events."""

from __future__ import annotations

import asyncio
import json
import statistics
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from tiny_audio.inference.lines import joined
from tiny_audio.inference.subtitles import Cue, srt, vtt
from tiny_audio.inference.words import Word
from tiny_audio.serving.pieces import Piece, as_logprobs

DONE = "data: [DONE]\n\n"
HEARTBEAT, HEARTBEAT_S = ": still at work\n\n", 10.0  # a comment; proxies close lines that are silent for long


@dataclass(frozen=True)
class Segment:
    """Holds what a replica answered for a stretch of a recording, where that lies, in seconds, and its words as `as_word`."""

    start_s: float
    end_s: float
    transcript: dict[str, Any]
    words: list[dict[str, Any]]


@dataclass(frozen=True)
class Transcription:
    """Holds the segments of a recording, in order; of those that are not there yet, a stream adds them."""

    segments: list[Segment]
    duration_s: float
    language: str
    with_logprobs: bool = False  # whether `json` answers, and the events of a stream, have those of the tokens
    with_words: bool = False  # whether `verbose_json` answers, and the segments of a stream, have the times of the words

    @property
    def text(self) -> str:
        """Returns the texts of all segments, joined by spaces."""
        return joined(segment.transcript["text"] for segment in self.segments)

    @property
    def cues(self) -> list[Cue]:
        """The segments as subtitles."""
        return [Cue(segment.start_s, segment.end_s, segment.transcript["text"]) for segment in self.segments]

    @property
    def logprobs(self) -> list[dict[str, Any]]:
        """The tokens of all segments and their log-probabilities, in OpenAI's words."""
        return as_logprobs(token for segment in self.segments for token in segment.transcript["tokens"])

    @property
    def usage(self) -> dict[str, Any]:
        """What the transcription took, in OpenAI's words: tokens, and seconds of audio besides."""
        audio, prompt, output = (
            sum(segment.transcript["num_tokens"][kind] for segment in self.segments) for kind in ("audio", "prompt", "output")
        )
        return {
            "type": "tokens",
            "input_tokens": audio + prompt,
            "output_tokens": output,
            "total_tokens": audio + prompt + output,
            "input_token_details": {"audio_tokens": audio, "text_tokens": prompt},
            "seconds": self.duration_s,
        }

    def as_json(self) -> dict[str, Any]:
        """Returns the `json` answer; `complete`, `looped` and `doubtful` are ours."""
        return {
            "text": self.text,
            "complete": all(segment.transcript["complete"] for segment in self.segments),
            "looped": any(segment.transcript["looped"] for segment in self.segments),
            "doubtful": any(segment.transcript["doubtful"] for segment in self.segments),
            "usage": self.usage,
        } | ({"logprobs": self.logprobs} if self.with_logprobs else {})

    def as_verbose_json(self) -> dict[str, Any]:
        """Returns the `verbose_json` answer; what this model does not know is null."""
        return {
            "task": "transcribe",
            "language": self.language,
            "duration": self.duration_s,
            "text": self.text,
            "segments": [_verbose(number, segment) for number, segment in enumerate(self.segments)],
            "usage": {"type": "duration", "seconds": self.duration_s},
        } | ({"words": [word for segment in self.segments for word in segment.words]} if self.with_words else {})


def as_word(word: Word) -> dict[str, Any]:
    """Returns a word as OpenAI's `words` have it, its times in seconds from the recording's beginning."""
    return {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)}


def _verbose(number: int, segment: Segment) -> dict[str, Any]:
    data, tokens = segment.transcript["text"].encode(), segment.transcript["tokens"]
    return {
        "id": number,
        "seek": round(100 * segment.start_s),  # mel frames, as Whisper counts
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.transcript["text"],
        "tokens": [token.id for token in tokens],
        "temperature": 0.0,
        "avg_logprob": statistics.fmean(token.logprob for token in tokens) if tokens else None,
        "compression_ratio": len(data) / len(zlib.compress(data)),
        "no_speech_prob": None,
    }


def _subtitles(text: str, kind: str) -> Response:
    return Response(text, media_type=f"{kind}; charset=utf-8")


ANSWERS: dict[str, Callable[[Transcription], Response]] = {
    "json": lambda transcription: JSONResponse(transcription.as_json()),
    "text": lambda transcription: PlainTextResponse(transcription.text),
    "srt": lambda transcription: _subtitles(srt(transcription.cues), "text/plain"),
    "vtt": lambda transcription: _subtitles(vtt(transcription.cues), "text/vtt"),
    "verbose_json": lambda transcription: JSONResponse(transcription.as_verbose_json()),
}


def event(body: dict[str, Any]) -> str:
    """Writes a server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def delta_event(piece: Piece, with_logprobs: bool) -> str:
    """Writes the event that brings the next piece of the text."""
    logprobs = {"logprobs": as_logprobs(piece.tokens)} if with_logprobs else {}
    return event({"type": "transcript.text.delta", "delta": piece.text} | logprobs)


def segment_event(number: int, segment: Segment, with_words: bool) -> str:
    """Writes the event that ends a segment and brings its times; OpenAI's, but for the speaker, and for the words, ours."""
    times = {"start": segment.start_s, "end": segment.end_s} | ({"words": segment.words} if with_words else {})
    return event({"type": "transcript.text.segment", "id": str(number), **times, "text": segment.transcript["text"]})


def done_event(transcription: Transcription) -> str:
    """Writes the one event that ends a transcript."""
    return event({"type": "transcript.text.done", **transcription.as_json()})


async def events_of(
    pieces: AsyncIterator[Piece | Segment], transcription: Transcription, with_segments: bool
) -> AsyncIterator[str]:
    """Writes the events of a transcript: its pieces and, if they are asked for, segments; then one that says it is done.

    The transcription has no segments at first; it gets them as they come.
    """
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Piece):
                yield delta_event(piece, transcription.with_logprobs)
                continue
            if with_segments:
                yield segment_event(len(transcription.segments), piece, transcription.with_words)
            transcription.segments.append(piece)
    yield done_event(transcription)
    yield DONE


async def with_heartbeats(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yields events as they come, and a comment wherever none came for HEARTBEAT_S."""
    following = None
    try:
        while True:
            following = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait([following], timeout=HEARTBEAT_S))[0]:
                yield HEARTBEAT
            try:
                yield following.result()
            except StopAsyncIteration:
                return
    finally:
        if following and not following.done():
            following.cancel()
            await asyncio.wait([following])
        await events.aclose()
