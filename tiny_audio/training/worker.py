"""What every Ray Train worker runs: the state of one rank, and the loop from the start or the last checkpoint to the end."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import ray.train
import torch
from torch import distributed

from tiny_audio.audio.augment import batch_masks
from tiny_audio.config import ConfigError
from tiny_audio.counts import count_reject, num_rejects
from tiny_audio.data.batch import WorkerBatch
from tiny_audio.data.stream import WorkerStream
from tiny_audio.inference.transcriber import MAX_PASSING_ROWS, texts_in_passing
from tiny_audio.model.saved import load_trained
from tiny_audio.model.whole_layers import whole_layers
from tiny_audio.run.checkpoint import Checkpoint, CheckpointWriter, Progress, latest_checkpoint, load_checkpoint
from tiny_audio.run.claim import require_claim
from tiny_audio.run.ledger import LEDGER, Ledger, write_ledger
from tiny_audio.run.metrics import append_metrics, append_note, append_warning
from tiny_audio.run.model_card import describe_sizes
from tiny_audio.run.parts import drop_parts_after
from tiny_audio.run.rejects import NON_FINITE, REJECTS, RejectLog, SkippedRow
from tiny_audio.storage import said_in_one_line
from tiny_audio.training.budget import find_micro_batch_s
from tiny_audio.training.build import build_model, compiles
from tiny_audio.training.collectives import all_min, from_rank_zero, gathered_by_rank_zero
from tiny_audio.training.feature_cache import FeatureCache
from tiny_audio.training.feed import Feed, ReadyStep
from tiny_audio.training.interval import Interval
from tiny_audio.training.rank_monitor import RankMonitor
from tiny_audio.training.resolved import ResolvedRun
from tiny_audio.training.schedule import learning_rate, learning_rates
from tiny_audio.training.sharded_transcriber import ShardedTranscriber
from tiny_audio.training.validation import Validation, made_once
from tiny_audio.training.watchdog import COMPUTING, DATA, GRADIENTS, OTHERS, SAVING, STARTING, VALIDATING, Watchdog
from tiny_audio.training.zero import Engine


class Worker:
    """The state of one rank through `train_loop`."""

    def __init__(self, run: ResolvedRun, watchdog: Watchdog, dev_clips: ray.ObjectRef):
        context, config = ray.train.get_context(), run.config
        self.run, self.rank, self.num_workers = run, context.get_world_rank(), context.get_world_size()
        self.device, self.watchdog = ray.train.torch.get_device(), watchdog
        self.model = build_model(config, self.device)
        self.monitor = RankMonitor(config.name, self.rank, self.model, self.device)
        watchdog.tell(STARTING)  # the next part of starting, which has its own time
        self.progress = Progress(plan=run.identity)
        moments = self._restore()
        if self.rank == 0 and self.progress.step == 0:
            with self.writing():
                append_note(run.folder, 0, describe_sizes(self.model))
        grouped = config.zero_stage < 3  # there workers must run every module equally often
        self.packing = self.model.packing(grouped)
        self.micro_batch_s = config.data.micro_batch_s or all_min(find_micro_batch_s(self.model), self.device)
        watchdog.tell(STARTING)
        layers, compiled = whole_layers(self.model), compiles(config, self.device)
        self.engine = Engine(self.model, self.model.trained_groups(), config.optimizer, config.zero_stage, layers, compiled)
        if moments:
            self.engine.load_moments(moments, self.progress.step)
        transcribe, rows_at_once = partial(texts_in_passing, self.model), MAX_PASSING_ROWS
        if config.zero_stage == 3:
            sharded = ShardedTranscriber(self.model, self.num_workers)
            transcribe, rows_at_once = sharded.texts, sharded.rows_at_once
        clips, on_part = made_once(dev_clips), partial(self.tell, VALIDATING)
        self.validation = Validation(
            clips, config.data.max_wer_rows, self.model, transcribe, rows_at_once, self.micro_batch_s, grouped, on_part
        )
        self.cache = FeatureCache(config.cache_features_gib * 2**30)
        self.ledger = Ledger()
        self.rejects = RejectLog(run.folder, config.data.max_reject_share)
        self.checkpoints = CheckpointWriter(
            run.folder, config.keep_checkpoints, config.score_metric, partial(require_claim, run.folder, run.claim)
        )
        self.save_stall_s = 0.0  # how long the last save held the run up, for the next logged line
        if self.rank == 0:
            with self.writing():
                for table in (REJECTS, LEDGER):
                    drop_parts_after(run.folder / table, self.progress.step)
        self.lowest_loss = math.inf  # of an interval, since this start
        self.start_interval()

    def _restore(self) -> dict[str, torch.Tensor] | None:
        """Loads the weights and progress of the last checkpoint, if there is one; returns its moments.

        Rank 0 reads it for all, so that the storage gives it out once, and to no two workers another one.
        """
        checkpoint = from_rank_zero(self._read_checkpoint)
        if checkpoint is None:
            return self._begin_from(self.run.config.init_from)
        weights, moments, self.progress = checkpoint
        self.model.load_trained(weights, str(self.run.folder))
        return moments

    def _begin_from(self, saved_model: str | None) -> None:
        """Loads the first weights of a run from a saved model, if one is named; what that has not trained stays fresh."""
        if saved_model:
            trained = from_rank_zero(partial(load_trained, saved_model))
            self.model.load_trained({**self.model.trained_weights(), **trained}, saved_model)

    def _read_checkpoint(self) -> Checkpoint | None:
        damaged: list[str] = []
        folder = latest_checkpoint(self.run.folder, damaged.append)  # the driver makes the stream from it too
        checkpoint = load_checkpoint(folder) if folder else None
        with self.writing():
            for line in damaged:
                append_warning(self.run.folder, checkpoint[2].step if checkpoint else 0, line)
        return checkpoint

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Guards all writing to the run's folder: storage that refuses, or a later start of the run, ends this start."""
        with said_in_one_line(self.run.folder):
            require_claim(self.run.folder, self.run.claim)
            yield

    def feed(self, stream: WorkerStream) -> Feed:
        """Makes the feed of the steps that are left, from a stream that begins with the first of them."""
        stream.begin_at(self.progress.step)
        plan, left = self.run.plan, self.run.config.num_steps - self.progress.step
        draw_masks = partial(batch_masks, num_mels=self.model.num_mels, config=plan.augment, seed=plan.seed)
        return Feed(stream, left, self.packing, self.micro_batch_s, self.cache, draw_masks)

    def tell(self, phase: str, ids: list[str] | tuple[str, ...] = ()) -> None:
        """Tells the watchdog what begins now, at the present step."""
        self.watchdog.tell(phase, self.progress.step, ids)

    def train_step(self, step: ReadyStep, meanwhile: Callable[[], None]) -> float | torch.Tensor:
        """Runs forward, backward and update over this worker's share of a step; returns the gradient's norm.

        Args:
            meanwhile: is called once the device has its first work.
        """
        config, ids = self.run.config, [clip.id for clip in step.batch.clips]
        self.tell(OTHERS, ids)
        self.model.ctc_alone = self.progress.step < config.ctc_alone_steps
        num_tokens = torch.full((), float(step.num_label_tokens), device=self.device)
        distributed.all_reduce(num_tokens)
        scale = self.num_workers / num_tokens.clamp(min=1)  # the engine averages over the workers
        for number, micro_batch in enumerate(step.micro_batches, 1):
            self.tell(COMPUTING, [clip.id for clip in micro_batch.rows])
            output = self.engine(micro_batch.to(self.device))
            if number == 1:
                meanwhile()
            self.tell(GRADIENTS, [clip.id for clip in micro_batch.rows])
            self.engine.backward(output.loss_sum * scale, last=number == len(step.micro_batches))
            self.interval.loss_sum += output.clips.loss_sum
            self.interval.add_clips(step.batch, micro_batch.rows, output.clips)
            if micro_batch.fresh and config.cache_features_gib:
                self.cache.keep(micro_batch.fresh, output.encoded, micro_batch.num_frames)
        self.tell(OTHERS, ids)
        norm = self.engine.step(learning_rates(config, self.progress.step))
        self.interval.grad_norm_sum += norm
        return norm

    def count(self, batch: WorkerBatch, wait_s: float) -> None:
        """Adds a trained batch to the run's progress and the interval's sums."""
        self.interval.audio_s += sum(clip.duration_s for clip in batch.clips)
        self.interval.wait_s += wait_s
        self.interval.num_rows += batch.num_step_rows
        self.progress.step += 1
        self.progress.num_rows += batch.num_step_rows
        self.ledger.add(batch)
        self.rejects.add(batch)
        for reject in batch.rejects:
            count_reject(self.progress.rejects, reject.source, reject.reason)
        for source, count in batch.left_out.items():
            self.progress.left_out[source] = self.progress.left_out.get(source, 0) + count

    def take_out(self, skipped: list[SkippedRow]) -> None:
        """Counts rows whose loss was not finite as rejected instead of trained."""
        self.ledger.take_out([row for row in skipped if row.rank == self.rank])
        self.progress.num_rows -= len(skipped)
        for row in skipped:
            count_reject(self.progress.rejects, row.source, NON_FINITE)
        if self.rank == 0:
            self.rejects.add_skipped(skipped)
            self.monitor.count_skipped(skipped)

    def log(self, grad_norm: float | torch.Tensor, epoch: int) -> str:
        """Adds the interval since the last log to metrics.jsonl, and starts the next.

        Returns why the run must stop, or an empty string. All workers agree that it must; rank 0 may be the only one to say why.
        """
        config = self.run.config
        stop = self.checkpoints.error or self.rejects.judge()
        sums = self.interval.sums(bool(stop))
        seconds = time.perf_counter() - self.interval_started
        skipped = self.interval.skipped() if sums.num_skipped else []
        self.take_out(skipped)
        step = self.progress.step
        fault = self.interval.fault(step, sums, skipped, self.lowest_loss, config.max_loss_rise)
        if step >= config.ctc_alone_steps + config.log_every:  # CTC's own loss is on another scale
            self.lowest_loss = min(self.lowest_loss, sums.mean_loss)
        self.progress.audio_s += sums.audio_s
        self.progress.train_s += seconds
        if self.rank == 0:
            values = {
                "step": step,
                "loss": sums.mean_loss,
                "learning_rate": learning_rate(config.optimizer, step - 1, config.num_steps),
                "grad_norm": float(grad_norm),
                "samples_per_s": self.interval.num_rows / seconds,
                "audio_s_per_s": sums.audio_s / seconds,
                "data_wait_share": sums.wait_s / self.num_workers / seconds,
                "epoch": epoch,
                "num_rejected": num_rejects(self.progress.rejects),
                "num_workers": self.num_workers,
                "time_s": self.progress.train_s,
                "unix_time": time.time(),
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30,  # 0 without a GPU
            }
            if config.lora.rank:
                values["lora_learning_rate"] = learning_rates(config, step - 1)[1]
            if self.save_stall_s:  # the last save held the run up for so long
                values["save_stall_s"], self.save_stall_s = self.save_stall_s, 0.0
            if self.checkpoints.write_s:  # and its write, which is over, took so long
                values["save_write_s"], self.checkpoints.write_s = self.checkpoints.write_s, 0.0
            if self.checkpoints.written_at:
                values["checkpoint_unix_time"] = self.checkpoints.written_at
            with self.writing():
                if math.isfinite(sums.mean_loss):
                    append_metrics(self.run.folder, values)
                if fault or stop:
                    self.rejects.write(step)
        self.start_interval()
        return fault or stop or ("rank 0 says so" if sums.stops else "")

    def start_interval(self) -> None:
        """Begins to sum up the steps until the next log."""
        self.interval = Interval(torch.zeros((), device=self.device), torch.zeros((), device=self.device))
        self.interval_started = time.perf_counter()

    def validate(self) -> dict[str, float]:
        """Validates, and logs the scores; returns them, the same on every worker."""
        self.tell(VALIDATING)
        scores = self.validation()
        if self.rank == 0:
            with self.writing():
                append_metrics(self.run.folder, {"step": self.progress.step, **scores})
        return scores

    def save(self, scores: dict[str, float]) -> None:
        """Writes the tables up to this step, and begins to write a checkpoint, which a thread of rank 0 will finish.

        All workers must call it.

        Args:
            scores: the scores of a validation at this step, if there was one.
        """
        self.tell(SAVING)
        started = time.perf_counter()
        trained = gathered_by_rank_zero(self.ledger.take())
        with self.writing():
            if self.rank == 0:  # before the checkpoint is begun: whatever that counts is in the tables
                write_ledger(self.run.folder, self.progress.step, trained)
                self.rejects.write(self.progress.step)
        self.progress.scores = {name: score for name, score in scores.items() if math.isfinite(score)}
        weights, moments = self.engine.weights(), self.engine.moments()
        if self.rank == 0:
            self.checkpoints.begin(weights, moments, self.progress)
            self.save_stall_s = time.perf_counter() - started


def trim_heap() -> None:
    """Returns free memory to the system: blocks of ever different sizes leave holes in glibc's heap, by which it would grow."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def train_loop(loop_config: dict) -> str:
    """Runs on every worker; returns what stopped the run before its end, or an empty string.

    An error that a new start would meet again ends the run, whichever worker raises it.
    """
    run, watch = loop_config["run"], loop_config["watch"]
    final, _ = ray.get(watch.reasons.remote())
    if final:
        return final
    with Watchdog(watch, ray.train.get_context().get_world_rank()) as watchdog:
        try:
            return train_to_end(run, watchdog, loop_config["dev_clips"])
        except ConfigError as error:
            ray.get(watch.end.remote(str(error)))
            return str(error)


def train_to_end(run: ResolvedRun, watchdog: Watchdog, dev_clips: ray.ObjectRef) -> str:
    """Trains from the start or the last checkpoint to the end; returns what stopped the run before, or an empty string.

    The validation at the start is only logged: an untrained projector's score is no mark to beat, and its model none to keep.
    """
    config = run.config
    torch.set_num_threads(config.threads_per_worker)
    stream = WorkerStream(ray.train.get_dataset_shard("train"), ray.train.get_context().get_world_rank())
    worker = Worker(run, watchdog, dev_clips)
    feed = worker.feed(stream)
    if worker.progress.step == 0:
        worker.validate()
    worker.start_interval()
    while not run.end_reason(worker.progress):
        worker.tell(DATA)
        asked = time.perf_counter()
        ready = next(feed)
        wait_s = time.perf_counter() - asked
        grad_norm = worker.train_step(ready, feed.make_next)
        worker.count(ready.batch, wait_s)
        worker.monitor.count(ready.batch, ready.micro_batches, wait_s)
        if not gc.get_freeze_count():  # a pass over all that was loaded and compiled takes 0.4 s, while all workers wait
            gc.freeze()
        step, last = worker.progress.step, worker.progress.step == config.num_steps
        save_due = step % config.checkpoint_every == 0 or last
        eval_due = step % config.eval_every == 0 or last
        if step % config.log_every == 0 or save_due or eval_due:
            stopped = worker.log(grad_norm, ready.batch.epoch)
            if stopped:
                worker.checkpoints.wait()
                return stopped
        scores = worker.validate() if eval_due else {}
        best = bool(scores) and worker.progress.count_validation(scores, config.score_metric)
        if save_due or best or run.end_reason(worker.progress):
            worker.save(scores)
        if eval_due or save_due:
            trim_heap()
            worker.start_interval()
    worker.checkpoints.wait()
    return worker.checkpoints.error
