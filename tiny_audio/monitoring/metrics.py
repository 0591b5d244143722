"""Every metric of ours that Prometheus sees: its name, kind, labels and meaning, here and nowhere else.

Ray's agent on each node offers them for scraping as `ray_` and the name, with labels of its own (NodeAddress, WorkerId and
others) beside these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bounds = tuple[float, ...]
Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """Describes a metric.

    `bounds` are the upper bounds of a histogram's buckets. Its sum is rough, for Ray takes each value as its bucket's middle:
    where a sum is wanted, count.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    bounds: Bounds = ()

    @property
    def exported(self) -> str:
        """Returns its name in Prometheus; to a histogram's, `_bucket`, `_sum` and `_count` are added."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


def _of_training(name: str, kind: Kind, meaning: str, *labels: str) -> Metric:
    return Metric(f"tiny_audio_train_{name}", kind, ("run", *labels), meaning)


# ---- what the driver says of a run
STEP = _of_training("step", "gauge", "Optimizer steps done, of the last logged line.")
PLANNED_STEPS = _of_training("planned_steps", "gauge", "Optimizer steps of the whole run.")
LOSS = _of_training("loss", "gauge", "Mean loss of the last logged interval, in nats per label token.")
LEARNING_RATE = _of_training("learning_rate", "gauge", "Learning rate of the last logged step.")
GRAD_NORM = _of_training("grad_norm", "gauge", "Norm of the gradient at the last logged step.")
NUM_WORKERS = _of_training("workers", "gauge", "Workers that trained the last logged interval.")
VAL_LOSS = _of_training("val_loss", "gauge", "Loss of the last validation, in nats per label token.")
VAL_WER = _of_training("val_wer", "gauge", "Word error rate of the last validation, as a ratio.")
LINE_TIME = _of_training("line_time_seconds", "gauge", "Unix time of the last logged line; of the start before the first.")
CHECKPOINT_TIME = _of_training(
    "checkpoint_time_seconds", "gauge", "Unix time at which the last checkpoint was whole; of the start before the first."
)
STARTS = _of_training("starts", "counter", "Starts of the workers. All but the first are restarts.")
ENDS = _of_training("ends", "counter", "Ends of a run's driver, by outcome: finished, or failed.", "outcome")

# ---- what each worker counts
ROWS = _of_training("rows", "counter", "Clips trained. Those that a restart trains again count again.", "rank")
AUDIO_S = _of_training("audio_seconds", "counter", "Seconds of audio trained.", "rank")
DATA_WAIT_S = _of_training("data_wait_seconds", "counter", "Seconds that a worker waited for data.", "rank")
FLOP = _of_training("flop", "counter", "Operations that the trained clips need; see model/flops.py.", "rank")
PEAK_FLOPS = _of_training("peak_flops", "gauge", "Dense bf16 operations a second of the worker's device, where known.", "rank")
REJECTS = _of_training("rejects", "counter", "Rows that were not trained, by source and reason.", "source", "reason")

TRAINING = (
    *(STEP, PLANNED_STEPS, LOSS, LEARNING_RATE, GRAD_NORM, NUM_WORKERS, VAL_LOSS, VAL_WER, LINE_TIME, CHECKPOINT_TIME),
    *(STARTS, ENDS, ROWS, AUDIO_S, DATA_WAIT_S, FLOP, PEAK_FLOPS, REJECTS),
)


def _of_answers(name: str, kind: Kind, meaning: str, *labels: str, bounds: tuple[float, ...] = ()) -> Metric:
    return Metric(f"tiny_audio_serve_{name}", kind, labels, meaning, bounds)


def _of_replicas(name: str, kind: Kind, meaning: str, bounds: tuple[float, ...] = (), labels: tuple[str, ...] = ()) -> Metric:
    return Metric(f"tiny_audio_serve_{name}", kind, ("replica", *labels), meaning, bounds)


SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
CLIPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# ---- what is answered over HTTP
REQUESTS = _of_answers("requests", "counter", "Answers, by HTTP status and outcome: ok, or an error's code.", "status", "outcome")
REQUEST_S = _of_answers("request_seconds", "histogram", "Seconds from a request's head to the end of its answer.", bounds=SECONDS)

# ---- what realtime sessions do, in each ingress
SESSIONS = _of_answers("realtime_sessions", "gauge", "Realtime sessions that are open.")
SESSIONS_ENDED = _of_answers("realtime_ends", "counter", "Realtime sessions that ended: client_gone, or the code told.", "reason")
ITEMS = _of_answers("realtime_items", "counter", "Items that got their text, ok, or an error, its code.", "outcome")
ITEM_S = _of_answers("realtime_item_seconds", "histogram", "Seconds from an item's commit to its whole text.", bounds=SECONDS)

# ---- what each replica of the model does
AUDIO_IN_S = _of_replicas("audio_in_seconds", "counter", "Seconds of audio that a replica was given.")
TRANSCRIBED_S = _of_replicas("transcribed_seconds", "counter", "Seconds of audio that it transcribed to their end.")
ENDED = _of_replicas("clips", "counter", "Clips that it answered: whole, mended where they looped, or cut.", labels=("outcome",))
TOKENS = _of_replicas("tokens", "counter", "Tokens that it wrote, the end of each text among them.")
DOUBTFUL = _of_replicas("doubtful", "counter", "Texts of it that are far from what the model's CTC head heard.")
QUEUE_S = _of_replicas("queue_seconds", "histogram", "Seconds that a clip waited in it for a slot.", SECONDS)
FIRST_TOKEN_S = _of_replicas("first_token_seconds", "histogram", "Seconds from a clip's arrival to its first token.", SECONDS)
BATCH = _of_replicas("batch_clips", "histogram", "Clips that ran together when one ended.", CLIPS)
QUEUED_S = _of_replicas("queued_audio_seconds", "gauge", "Seconds of audio that wait in it for a slot.")
SLOTS_IN_USE = _of_replicas("slots_in_use", "gauge", "Clips that it works on.")
SLOTS = _of_replicas("slots", "gauge", "Clips that it can work on at once.")
MODEL_LOAD_S = _of_replicas("model_load_seconds", "gauge", "Seconds until it had its model and had tried it.")
WITHOUT_GRAPHS = _of_replicas("without_graphs", "gauge", "1 where it lacks the CUDA graphs that a GPU should have.")

SERVING = (
    *(REQUESTS, REQUEST_S, SESSIONS, SESSIONS_ENDED, ITEMS, ITEM_S),
    *(AUDIO_IN_S, TRANSCRIBED_S, ENDED, TOKENS, DOUBTFUL, QUEUE_S, FIRST_TOKEN_S, BATCH),
    *(QUEUED_S, SLOTS_IN_USE, SLOTS, MODEL_LOAD_S, WITHOUT_GRAPHS),
)
