"""The speech of the synthetic data: the espeak-ng synthesiser and its voices, some of them held out of all training.

espeak-ng is GPL-3 and comes with the extra `[data]`. Only the jobs that make data load it, through ctypes.
"""

from __future__ import annotations

import ctypes
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soxr
import yaml

from tiny_audio.audio.clip import SAMPLE_RATE

VOICES_PATH = Path(__file__).with_name("voices.yaml")
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT
_UTF8 = 1
_RATE, _PITCH, _WORD_GAP = 1, 3, 7  # espeak_PARAMETER
_LIST_ENDS, _WORD = 0, 1  # espeak_EVENT_TYPE


class _Event(ctypes.Structure):
    """Holds an espeak_EVENT: here, that a word begins at a sample."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("id", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # of its first character, which is 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("detail", ctypes.c_char * 8),
    )


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak-ng accent with a variant."""

    accent: str
    variant: str

    @property
    def name(self) -> str:
        """The name by which espeak-ng knows the voice."""
        return f"{self.accent}+{self.variant}"

    @property
    def sex(self) -> str:
        """The value of LoquaciousSet's column `sex`: empty unless the variant is named like f1 or m1."""
        return {"f": "female", "m": "male"}.get(self.variant[0], "") if self.variant[1:].isdigit() else ""


def _voices(variants: str) -> list[Voice]:
    names = yaml.safe_load(VOICES_PATH.read_text())
    return [Voice(accent, variant) for accent in names["accents"].split() for variant in names[variants].split()]


def training_voices() -> list[Voice]:
    """Returns the voices of the training data."""
    return _voices("variants")


def held_out_voices() -> list[Voice]:
    """Returns the voices that neither the backbones nor a projector is trained on."""
    return _voices("held_out_variants")


@lru_cache(maxsize=1)
def _engine():
    """Loads the library, once per process; returns it, its sample rate, and what its callback adds to.

    These are a list of samples, and the sample at which each word begins by the place of its first character.
    """
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise RuntimeError("espeak-ng did not start")
    chunks: list[np.ndarray] = []
    words: dict[int, int] = {}

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    def on_samples(samples, count, events):
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while events[number].type != _LIST_ENDS:
            if events[number].type == _WORD:
                words[events[number].text_position - 1] = events[number].sample
            number += 1
        return 0

    library.espeak_SetSynthCallback(on_samples)
    return library, rate, chunks, words, on_samples  # the callback must outlive this call


def synthesize(text: str, voice: Voice, rng: random.Random) -> np.ndarray:
    """Synthesises `text` as (S,) int16 samples at 16 kHz, with speed, pitch, pauses and loudness drawn from `rng`.

    The same draw sounds the same but for espeak-ng's hiss, which cannot be seeded.

    Raises:
        ValueError: espeak-ng does not know the voice.
        RuntimeError: espeak-ng did not start, or returned no samples.
    """
    return synthesize_words(text, voice, rng)[0]


def synthesize_words(text: str, voice: Voice, rng: random.Random) -> tuple[np.ndarray, list[float | None]]:
    """Synthesises as `synthesize` does; returns the second at which each word of the text begins, too.

    It is None for a word that espeak-ng says in one with the word before, such as "of the".
    """
    library, rate, chunks, words, _ = _engine()
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice.name}")
    library.espeak_SetParameter(_RATE, rng.randint(140, 210), 0)
    library.espeak_SetParameter(_PITCH, rng.randint(30, 70), 0)
    library.espeak_SetParameter(_WORD_GAP, rng.randint(0, 3), 0)
    chunks.clear()
    words.clear()
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8, None, None)
    if not chunks:
        raise RuntimeError(f"espeak-ng returned no samples for {text!r}")
    waveform = soxr.resample(np.concatenate(chunks).astype(np.float32) / 32768.0, rate, SAMPLE_RATE)
    waveform *= rng.uniform(0.3, 0.95) / max(1e-3, float(np.abs(waveform).max()))
    starts = [words.get(match.start()) for match in re.finditer(r"\S+", text)]
    return (waveform * 32767.0).astype(np.int16), [None if start is None else start / rate for start in starts]
