"""Chooses the audio files that a load test sends: the user's own, or made ones of LoquaciousSet's durations."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.decode import AudioError, decode
from tiny_audio.config import ConfigError, require
from tiny_audio.data.audio_files import STDIN, find_audio
from tiny_audio.lab.durations import draw_durations_s
from tiny_audio.lab.load_test.config import LoadTestConfig
from tiny_audio.lab.synthetic.dataset import encode_audio
from tiny_audio.lab.synthetic.sentences import unique_sentences

NUM_MADE = 64  # made clips, sent in turn
NUM_SENTENCES = 16  # spoken ones that made clips are joined from
LONGEST_FILE_S = 6 * 3600.0  # limit of a user's file, to tell its duration


@dataclass(frozen=True)
class Upload:
    """Holds a file to send, and how long its audio lasts."""

    name: str
    content: bytes
    duration_s: float


def uploads(config: LoadTestConfig) -> list[Upload]:
    """Returns the files to send, in the order in which they are sent.

    Raises:
        ConfigError: an input is not there or is not audio, or there is no espeak-ng to make speech.
    """
    if config.inputs:
        return [_read(path) for path in find_audio(config.inputs)]
    rng = np.random.default_rng(0)
    durations_s = draw_durations_s(NUM_MADE, rng, config.mean_s, config.longest_s)
    sound = _speech() if config.made_of == "speech" else (1000 * rng.standard_normal(SAMPLE_RATE * 60)).astype(np.int16)
    return [_cut(sound, duration_s, rng) for duration_s in durations_s]


def _read(path: str) -> Upload:
    require("://" not in path and path != STDIN, f"{path}: a load test sends files of this machine")
    content = Path(path).read_bytes()
    try:
        pcm = decode(content, LONGEST_FILE_S)
    except AudioError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Upload(Path(path).name, content, len(pcm) / SAMPLE_RATE)


def _cut(sound: np.ndarray, duration_s: float, rng: np.random.Generator) -> Upload:
    """Cuts a clip of that duration out of `sound`, which goes round, from a random place on."""
    clip = np.roll(sound, -int(rng.integers(len(sound))))
    clip = np.resize(clip, int(duration_s * SAMPLE_RATE))
    return Upload("clip.flac", encode_audio(clip, "flac"), len(clip) / SAMPLE_RATE)


def _speech() -> np.ndarray:
    try:
        from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize

        voices, rng = held_out_voices(), random.Random(0)
        spoken = [synthesize(text, rng.choice(voices), rng) for text in unique_sentences(NUM_SENTENCES, seed=0)]
    except ImportError:
        remedy = "pip install '.[data]' brings espeak-ng; or give inputs=[...], or made_of=noise"
        raise ConfigError(f"speech cannot be made here: {remedy}") from None
    return np.concatenate(spoken)
