"""Transcribes decoded clips in a pool of Ray Data actors, each with one model on a GPU or on CPU threads."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from tiny_audio.data.clip_table import row_pcm

CALLS_AT_ONCE = 8  # threads of an actor: clips of the next batches join while the last ones of a batch are still running


class TranscribeRows:
    """Holds an engine in an actor and adds `hypothesis`, `complete` and `looped` to tables of decoded clips."""

    def __init__(self, model: str, device: str, num_threads: int, untrained_seed: int | None):
        import torch

        from tiny_audio.inference.transcriber import Transcriber
        from tiny_audio.model.asr import ASRModel
        from tiny_audio.model.projectors import Projector

        torch.set_num_threads(num_threads)
        asr_model = ASRModel.from_pretrained(model)
        if untrained_seed is not None:
            torch.manual_seed(untrained_seed)
            asr_model.projector = Projector(asr_model.encoder.config.d_model, asr_model.decoder.config.hidden_size)
        self.transcriber = Transcriber(asr_model.to(device))
        self.transcriber.warm_up()
        self.transcriber.engine.start()

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        clip_transcripts = iter(self.transcriber([row_pcm(row) for row in rows if row["pcm"]]))
        transcripts = [next(clip_transcripts) if row["pcm"] else None for row in rows]  # None for a reject, and without speech
        table = table.drop_columns(["pcm"])
        table = table.append_column("hypothesis", pa.array([t.text if t else "" for t in transcripts], pa.string()))
        for name in ("complete", "looped"):
            table = table.append_column(
                name, pa.array([bool(getattr(t, name)) if t else name == "complete" for t in transcripts], pa.bool_())
            )
        return table


@dataclass(frozen=True)
class TranscribeSettings:
    """Says which model the actors load, how many actors there are, and what each may use."""

    model: str
    num_actors: int = 1
    use_gpu: bool = False
    num_threads: int = 1  # CPU threads of an actor
    batch_rows: int = 64
    untrained_seed: int | None = None  # seed of a fresh projector that replaces the trained one


def transcribe_dataset(clips: ray.data.Dataset, settings: TranscribeSettings) -> ray.data.Dataset:
    """Transcribes the clips of a `clip_dataset` or `file_dataset`; returns its rows with transcripts instead of PCM."""
    return clips.map_batches(
        TranscribeRows,
        batch_size=settings.batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=settings.num_actors,
            max_tasks_in_flight_per_actor=CALLS_AT_ONCE,
            max_concurrent_calls_per_actor=CALLS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_gpus=1 if settings.use_gpu else None,
        fn_constructor_kwargs={
            "model": settings.model,
            "device": "cuda" if settings.use_gpu else "cpu",
            "num_threads": settings.num_threads,
            "untrained_seed": settings.untrained_seed,
        },
    )
