"""Makes Parquet shards in LoquaciousSet's columns from synthesised speech: the quickstart's train, dev and test data.

A Ray Data task makes each file. Test sentences never occur in train or dev. The rows of "voices" are spoken by voices that
occur nowhere else; each row of "words" has a word that no training text has, not even the backbones', so a file of texts
makes no such set. A few train rows are broken on purpose, some of every kind, to show how a run counts them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr

from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.config import require
from tiny_audio.data.columns import SCHEMA
from tiny_audio.data.stream import map_each
from tiny_audio.lab.synthetic.config import SyntheticConfig
from tiny_audio.lab.synthetic.sentences import novel_sentences, read_sentences, unique_sentences
from tiny_audio.lab.synthetic.speech import Voice, held_out_voices, synthesize, training_voices
from tiny_audio.storage import output_path

MANIFEST = "manifest.json"
# Shares of the encodings of clips: most are stored as in LoquaciousSet, the others as users store theirs.
ENCODINGS = {"wav": 0.76, "flac": 0.08, "mp3": 0.08, "stereo": 0.03, "8-bit": 0.03, "44.1 kHz": 0.02}


@dataclass
class Sentence:
    """What a row is made from."""

    id: str
    text: str
    voice: str
    broken: str = ""  # a kind of `break_audio`; empty for a whole row


def encode_audio(pcm: np.ndarray, encoding: str) -> bytes:
    """Encodes (S,) int16 samples at 16 kHz as an audio file, in one of ENCODINGS."""
    rate, samples, subtype = SAMPLE_RATE, pcm.astype(np.float32) / 32768.0, "PCM_16"
    if encoding == "stereo":
        samples = np.stack([samples, samples], axis=1)
    if encoding == "44.1 kHz":
        rate, samples = 44_100, soxr.resample(samples, SAMPLE_RATE, 44_100)
    if encoding == "8-bit":
        subtype = "PCM_U8"
    container = {"flac": "FLAC", "mp3": "MP3"}.get(encoding, "WAV")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype="MPEG_LAYER_III" if container == "MP3" else subtype)
    return buffer.getvalue()


def break_audio(pcm: np.ndarray, kind: str) -> bytes:
    """Returns bytes that must be rejected for the reason `kind`, one of `decode.REASONS`.

    Raises:
        ValueError: there is no such kind here.
    """
    buffer = io.BytesIO()
    match kind:
        case "empty":
            return b""
        case "not_audio":
            return b"this is no audio at all, it is a sentence"
        case "truncated":
            return encode_audio(pcm, "wav")[: len(pcm)]
        case "no_samples":
            return encode_audio(pcm[:0], "wav")
        case "not_finite":
            soundfile.write(buffer, np.full(SAMPLE_RATE, np.nan, np.float32), SAMPLE_RATE, format="WAV", subtype="FLOAT")
            return buffer.getvalue()
        case "too_long":
            return encode_audio(np.tile(pcm, 1 + 31 * SAMPLE_RATE // len(pcm)), "flac")
    raise ValueError(f"no such way to break audio: {kind}")


def _row(sentence: Sentence, rng: random.Random) -> dict:
    accent, _, variant = sentence.voice.partition("+")
    voice = Voice(accent, variant)
    pcm = synthesize(sentence.text, voice, rng)
    encoding = rng.choices(list(ENCODINGS), list(ENCODINGS.values()))[0]
    data = break_audio(pcm, sentence.broken) if sentence.broken else encode_audio(pcm, encoding)
    return {
        "ID": sentence.id,
        "duration": len(pcm) / SAMPLE_RATE,
        "wav": {"bytes": data, "path": f"{sentence.id}.wav"},
        "spk_id": voice.name,
        "sex": voice.sex,
        "text": sentence.text,
    }


def write_shard(task: dict) -> dict:
    """Makes one Parquet file, as a Ray Data task; returns its path, rows and seconds of audio."""
    rng = random.Random(task["seed"])
    rows = [_row(Sentence(**sentence), rng) for sentence in json.loads(task["sentences"])]
    path = Path(task["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial, row_group_size=task["rows_per_row_group"])
    partial.rename(path)
    return {"path": str(path), "num_rows": len(rows), "duration_s": sum(row["duration"] for row in rows)}


def _sentences(name: str, texts: list[str], voices: list[Voice], rng: random.Random) -> list[Sentence]:
    return [Sentence(f"{name}-{i:05d}", text, rng.choice(voices).name) for i, text in enumerate(texts)]


def _splits(config: SyntheticConfig) -> dict[str, list[Sentence]]:
    rng, known, held_out = random.Random(config.seed), training_voices(), held_out_voices()
    count = config.num_train + config.num_dev + 2 * config.num_test
    texts = read_sentences(config.texts, count, config.seed) if config.texts else unique_sentences(count, config.seed)
    cut = [config.num_train, config.num_train + config.num_dev, config.num_train + config.num_dev + config.num_test]
    train = _sentences("train", texts[: cut[0]], known, rng)
    kinds = ("empty", "not_audio", "truncated", "no_samples", "not_finite", "too_long")
    for number, sentence in enumerate(rng.sample(train, config.num_broken)):
        sentence.broken = kinds[number % len(kinds)]
    splits = {
        "train/train": train,
        "dev/dev": _sentences("dev", texts[cut[0] : cut[1]], known, rng),
        "test/sentences": _sentences("sentences", texts[cut[1] : cut[2]], known, rng),
        "test/voices": _sentences("voices", texts[cut[2] :], held_out, rng),
    }
    if not config.texts:
        splits["test/words"] = _sentences("words", novel_sentences(config.num_test, config.seed), known, rng)
    return splits


def _tasks(config: SyntheticConfig) -> list[dict]:
    tasks = []
    for split, sentences in _splits(config).items():
        count = -(-len(sentences) // config.rows_per_file)
        for number in range(count):
            part = sentences[number * config.rows_per_file : (number + 1) * config.rows_per_file]
            tasks.append(
                {
                    "path": str(Path(config.output_dir) / f"{split}-{number:05d}-of-{count:05d}.parquet"),
                    "sentences": json.dumps([dataclasses.asdict(sentence) for sentence in part]),
                    "rows_per_row_group": config.rows_per_row_group,
                    "seed": f"{config.seed} {split} {number}",
                }
            )
    return tasks


def make_dataset(config: SyntheticConfig, show_progress=lambda files: files) -> dict:
    """Makes the shards, unless they are there already; returns the manifest that lies beside them.

    Ray must be up.

    Args:
        show_progress: wraps the iterable of finished files.

    Raises:
        ConfigError: `texts` cannot be used, or the folder holds Parquet files that were not made here.
    """
    config = dataclasses.replace(config, output_dir=str(output_path(config.output_dir)))
    folder, tasks = Path(config.output_dir), _tasks(config)
    facts = {"config": dataclasses.asdict(config), "sha256": hashlib.sha256(json.dumps(tasks).encode()).hexdigest()}
    manifest_path, shards = folder / MANIFEST, sorted(folder.glob("*/*.parquet"))
    if manifest_path.is_file():
        manifest = json.loads(manifest_path.read_text())
        if manifest.get("sha256") == facts["sha256"] and manifest["num_files"] == len(shards):
            return manifest
    else:
        require(not shards, f"output_dir={folder} holds Parquet files that were not made here; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    manifest_path.write_text(json.dumps({**facts, "num_files": None}) + "\n")  # from here on, what lies here is ours
    for stale in shards:  # of other sentences, which would mix with these
        stale.unlink()
    files = list(show_progress(map_each(tasks, write_shard)))
    manifest = {
        **facts,
        "num_files": len(files),
        "num_rows": sum(file["num_rows"] for file in files),
        "hours": sum(file["duration_s"] for file in files) / 3600,
    }
    manifest_path.write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest
