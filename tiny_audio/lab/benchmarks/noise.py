"""Noise in place of speech, in clips and in shards. It has LoquaciousSet's durations, which is all that speed depends on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tiny_audio.audio.clip import SAMPLE_RATE, Clip
from tiny_audio.lab.durations import LONGEST_S, draw_durations_s

LABEL_TOKENS_PER_S = 3.55  # SmolLM3's tokens of English read aloud: 31 for 8.7 s
WORD = " the"  # one token of the embedded tokenizer
ROWS_PER_FILE, ROWS_PER_ROW_GROUP = 512, 64


def noise_clips(num_clips: int, seed: int, longest_s: float = LONGEST_S) -> list[Clip]:
    """Returns clips of noise, labelled with as many tokens as speech of their length has."""
    rng = np.random.default_rng(seed)
    durations_s = draw_durations_s(num_clips, rng, longest_s=longest_s)
    noise = (rng.standard_normal(int(LONGEST_S * SAMPLE_RATE)) * 1000).astype(np.int16)
    texts = [WORD * max(1, round(duration_s * LABEL_TOKENS_PER_S) - 2) for duration_s in durations_s]
    return [
        Clip(f"{seed}-{i}", noise[: int(duration_s * SAMPLE_RATE)], text)
        for i, (duration_s, text) in enumerate(zip(durations_s, texts, strict=True))
    ]


def write_noise_shards(folder: Path, num_rows: int, seed: int, longest_s: float = LONGEST_S) -> str:
    """Writes noise clips as WAV in Parquet, as LoquaciousSet has them; returns the glob of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        clips = noise_clips(min(ROWS_PER_FILE, num_rows - start), seed + number, longest_s)
        table = pa.Table.from_pylist([_row(clip) for clip in clips])
        pq.write_table(table, folder / f"noise-{number:03d}.parquet", row_group_size=ROWS_PER_ROW_GROUP)
    return str(folder / "*.parquet")


def _row(clip: Clip) -> dict:
    buffer = io.BytesIO()
    soundfile.write(buffer, clip.pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    wav = {"bytes": buffer.getvalue(), "path": clip.id}
    return {"ID": clip.id, "duration": clip.duration_s, "wav": wav, "text": clip.text}
