"""Transcribes decoded clips in a pool of Ray Data actors, each with one model on a GPU or on CPU threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from tiny_audio.data.clip_table import table_pcm
from tiny_audio.inference.config import PoolConfig
from tiny_audio.model.fp8 import require_fp8
from tiny_audio.storage import require_model

if TYPE_CHECKING:
    from tiny_audio.inference.transcriber import Transcript

WORDS = pa.list_(pa.struct([("text", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())]))
CALLS_AT_ONCE = 8  # threads of an actor: clips of the next batches join while the last ones of a batch are still running


class TranscribeRows:
    """Holds an engine in an actor and adds its transcripts to tables of decoded clips, in the columns of `_columns`."""

    def __init__(self, model: str, device: str, fp8: bool, num_threads: int, untrained_seed: int | None, with_words: bool):
        import torch

        from tiny_audio.inference.transcriber import Transcriber

        torch.set_num_threads(num_threads)
        self.with_words = with_words
        self.transcriber = Transcriber.load(model, device, fp8)
        if untrained_seed is not None:
            torch.manual_seed(untrained_seed)
            asr_model = self.transcriber.model
            asr_model.projector = asr_model.fresh_projector().to(device).eval()
        self.transcriber.warm_up()
        self.transcriber.engine.start()

    def __call__(self, table: pa.Table) -> pa.Table:
        from tiny_audio.inference.transcriber import Transcript

        clips = table_pcm(table)  # empty for a reject, and where nothing was said
        clip_transcripts = iter(self.transcriber([pcm for pcm in clips if len(pcm)], self.with_words))
        nothing = Transcript("", 0, complete=True)
        transcripts = [next(clip_transcripts) if len(pcm) else nothing for pcm in clips]
        table = table.drop_columns(["pcm"])
        for name, values, kind in self._columns(transcripts):
            table = table.append_column(name, pa.array(values, kind))
        return table

    def _columns(self, transcripts: list[Transcript]) -> Iterator[tuple[str, list, pa.DataType]]:
        """Yields the name, the values and the type of each column."""
        yield "hypothesis", [transcript.text for transcript in transcripts], pa.string()
        for name in ("complete", "looped", "doubtful"):
            yield name, [getattr(transcript, name) for transcript in transcripts], pa.bool_()
        yield "heard", [transcript.heard for transcript in transcripts], pa.string()
        words = [t.words and [word._asdict() for word in t.words] for t in transcripts]
        yield "words", words, WORDS
        yield "fallback", [self.transcriber.runner.fallback] * len(transcripts), pa.string()


@dataclass(frozen=True)
class TranscribeSettings:
    """Says which model the actors load, how many actors there are, and what each may use."""

    model: str
    num_actors: int = 1
    use_gpu: bool = False
    fp8: bool = False
    num_threads: int = 1  # CPU threads of an actor
    batch_rows: int = 64
    untrained_seed: int | None = None  # seed of a fresh projector that replaces the trained one
    with_words: bool = False  # finds the times of the words, where the model has a CTC head

    @classmethod
    def of(cls, config: PoolConfig, untrained_seed: int | None = None, with_words: bool = False) -> TranscribeSettings:
        """Returns the settings that a config gives.

        Raises:
            ConfigError: there is no such model.
        """
        fields = (config.num_actors, config.use_gpu, config.fp8, config.num_threads, config.batch_rows)
        return cls(require_model(config.model), *fields, untrained_seed, with_words)


def transcribed_rows(clips: ray.data.Dataset, settings: TranscribeSettings) -> Iterator[dict]:
    """Transcribes the clips of a `clip_dataset` or `file_dataset`; yields its rows with transcripts instead of PCM.

    Warns of an actor that runs slower than its GPU could.

    Raises:
        ConfigError: FP8 is asked for, and the cluster's GPUs cannot compute in it.
    """
    if settings.fp8:
        _require_fp8_there()
    warned: set[str] = set()
    for row in _transcribe(clips, settings).iter_rows():
        fallback = row.pop("fallback")
        if fallback and fallback not in warned:
            warned.add(fallback)
            print(f"warning: {fallback}", file=sys.stderr)
        yield row


def _require_fp8_there() -> None:
    try:
        ray.get(ray.remote(num_gpus=1)(require_fp8).remote())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _transcribe(clips: ray.data.Dataset, settings: TranscribeSettings) -> ray.data.Dataset:
    return clips.map_batches(
        TranscribeRows,
        batch_size=settings.batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=settings.num_actors,
            max_tasks_in_flight_per_actor=2 * CALLS_AT_ONCE,  # the next ones wait at the actor
            max_concurrent_calls_per_actor=CALLS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_gpus=1 if settings.use_gpu else None,
        fn_constructor_kwargs={
            "model": settings.model,
            "device": "cuda" if settings.use_gpu else "cpu",
            "fp8": settings.fp8,
            "num_threads": settings.num_threads,
            "untrained_seed": settings.untrained_seed,
            "with_words": settings.with_words,
        },
    )
