"""The pool of actors that transcribe decoded clips: one model an actor, on a GPU or on CPU threads."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from tiny_audio.data.clip_table import row_pcm

CALLS_AT_ONCE = 8  # of an actor, each on a thread: clips of the next batches join while the last of one are still running


class TranscribeRows:
    """An actor that holds an engine and adds `hypothesis`, `complete` and `looped` to decoded clips."""

    def __init__(self, model: str, device: str, num_threads: int, untrained_seed: int | None):
        import torch

        from tiny_audio.inference.transcriber import Transcriber
        from tiny_audio.model.asr import ASRModel
        from tiny_audio.model.projectors import Projector

        torch.set_num_threads(num_threads)
        loaded = ASRModel.from_pretrained(model)
        if untrained_seed is not None:
            torch.manual_seed(untrained_seed)
            loaded.projector = Projector(loaded.encoder.config.d_model, loaded.decoder.config.hidden_size)
        self.transcriber = Transcriber(loaded.to(device))
        self.transcriber.warm_up()
        self.transcriber.engine.start()

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        usable = [row for row in rows if not row["reason"]]
        heard = iter(self.transcriber([row_pcm(row) for row in usable]))
        answers = [None if row["reason"] else next(heard) for row in rows]
        table = table.drop_columns(["pcm"])
        table = table.append_column("hypothesis", pa.array([a.text if a else "" for a in answers], pa.string()))
        for name in ("complete", "looped"):
            table = table.append_column(name, pa.array([bool(a and getattr(a, name)) for a in answers], pa.bool_()))
        return table


@dataclass(frozen=True)
class TranscribeSettings:
    """The pool of actors that transcribe."""

    model: str
    num_actors: int = 1
    use_gpu: bool = False
    num_threads: int = 1
    batch_rows: int = 64
    untrained_seed: int | None = None  # a fresh projector of this seed in place of the trained one


def transcribe_dataset(clips: ray.data.Dataset, settings: TranscribeSettings) -> ray.data.Dataset:
    """Clips of `clip_dataset` or `file_dataset` -> the same rows without PCM, with what was heard in each."""
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
