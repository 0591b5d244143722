"""Makes the lines that stand for files in the output of a transcription: their text and times, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable

from tiny_audio.inference.words import Word


def joined(texts: Iterable[str]) -> str:
    """Joins the texts of a recording's segments; one without words adds nothing."""
    return " ".join(filter(None, texts))


def segment_line(
    start_s: float, end_s: float, text: str, complete: bool, looped: bool, doubtful: bool, words: list[dict] | None = None
) -> dict:
    """Returns a segment as an output holds it, with its words where there are some; times are from the recording's beginning."""
    line = {"start_s": round(start_s, 3), "end_s": round(end_s, 3), "text": text}
    line |= {"complete": complete, "looped": looped, "doubtful": doubtful}
    return line if words is None else {**line, "words": words}


def word_line(word: Word) -> dict:
    """Returns a word as an output holds it; its times are from the recording's beginning."""
    return {"word": word.text, "start_s": round(word.start_s, 3), "end_s": round(word.end_s, 3)}


def file_line(path: str, duration_s: float, segments: list[dict], is_long: bool) -> dict:
    """Returns the line of a file from its segments, in order; only a long file's line holds these themselves."""
    line = {
        "path": path,
        "text": joined(segment["text"] for segment in segments),
        "duration_s": duration_s,
        "complete": all(segment["complete"] for segment in segments),
        "looped": any(segment["looped"] for segment in segments),
        "doubtful": any(segment["doubtful"] for segment in segments),
    }
    if is_long:
        return {**line, "segments": segments}
    window = segments[0] if segments else {}
    return {**line, "words": window["words"]} if "words" in window else line


def error_line(path: str, reason: str) -> dict:
    """Returns the line of a file that was rejected."""
    return {"path": path, "error": reason}
