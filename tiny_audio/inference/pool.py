"""The pool of actors that transcribe decoded clips: one model an actor, on a GPU or on CPU threads."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from tiny_audio.data.clip_table import row_pcm


class TranscribeRows:
    """An actor that holds a model and adds `hypothesis` and `complete` to decoded clips."""

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

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        usable = [row for row in rows if not row["reason"]]
        heard = iter(self.transcriber([row_pcm(row) for row in usable]))
        answers = [None if row["reason"] else next(heard) for row in rows]
        table = table.drop_columns(["pcm"])
        table = table.append_column("hypothesis", pa.array([a.text if a else "" for a in answers], pa.string()))
        return table.append_column("complete", pa.array([bool(a and a.complete) for a in answers], pa.bool_()))


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
        compute=ActorPoolStrategy(size=settings.num_actors),
        num_gpus=1 if settings.use_gpu else None,
        fn_constructor_kwargs={
            "model": settings.model,
            "device": "cuda" if settings.use_gpu else "cpu",
            "num_threads": settings.num_threads,
            "untrained_seed": settings.untrained_seed,
        },
    )
