"""Measures the speed of transcription on one GPU: the seed's snippet, transformers' `generate` in batches, and the engine.

Backbones have the true shapes and random weights, clips are noise of LoquaciousSet's durations, and each text is 31
tokens long, which is what 8.7 s of English take in SmolLM3's tokens; no text ends by itself here. Timing starts with
waveforms in host memory and ends with token ids there.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from tiny_audio.audio.clip import SAMPLE_RATE, padded_num_samples
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.inference.transcriber import MAX_PASSING_ROWS, Transcriber, texts_in_passing
from tiny_audio.lab.benchmarks.noise import noise_clips
from tiny_audio.lab.benchmarks.served import NUM_TOKENS, model_config
from tiny_audio.lab.benchmarks.step_speed import matmul_tflops
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.fp8 import freeze_to_fp8

NO_END = -1  # an id that no token has, so that no text ends before its limit
NUM_CLIPS, PASSES = 1024, 3  # offline; the median pass counts, for one lasts 4 s and a host may stumble
IN_FLIGHT = 128  # clips at a time, as many as clients of the service give it
SEED_CLIPS, CLIENT_CLIPS = 8, 40
GENERATE_ROWS, GENERATE_CLIPS = 128, 256  # the fastest batch of 64, 128 and 256, on an H100
PROFILED_CLIPS, PROFILED_ROWS = 34, 256  # rows of a prefill (about as many tokens as join at once) and of a decode step
COMPARED_CLIPS = 32  # compared with the engine's ids for each clip alone
KERNELS = {  # kinds of kernels, by parts of their names
    "attention": ("flash", "fmha", "sdpa"),
    "matrix products": ("gemm", "nvjet", "cutlass", "gemv", "splitK"),
    "convolutions": ("conv", "implicit"),
    "log-mels": ("fft",),
    "fused elementwise (norms, rotations, activations)": ("triton",),
    "copies": ("Memcpy", "Memset", "copy", "index"),
}


def noise_pcm(count: int, seed: int) -> list[np.ndarray]:
    """Makes (S,) int16 clips of noise."""
    return [clip.pcm for clip in noise_clips(count, seed)]


def seconds_of(clips: list[np.ndarray]) -> float:
    return sum(len(clip) for clip in clips) / SAMPLE_RATE


def generate_ids(model: ASRModel, clips: list[np.ndarray], rows: int, whole_window: bool = False) -> list[list[int]]:
    """Runs transformers' `generate` on clips of similar length together, `rows` per batch; returns their ids.

    Args:
        whole_window: each clip is heard as if it filled the encoder's window, as the seed does.
    """
    ids: list[list[int]] = [[]] * len(clips)
    order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        num_samples = torch.tensor([len(clips[i]) for i in part])
        longest, trimmed = int(num_samples.max()), model.trimmed or whole_window
        padded = padded_num_samples(longest, model.window_num_samples, trimmed, model.frames_per_token)
        if whole_window:
            padded = model.window_num_samples
            num_samples.fill_(padded)
        waveforms = pad_waveforms([torch.from_numpy(clips[i]) for i in part], padded).to(model.decoder.device)
        found = model.generate(log_mel(waveforms, model.num_mels), num_samples, NUM_TOKENS, min_new_tokens=NUM_TOKENS)
        for i, row in zip(part, found.tolist(), strict=True):
            ids[i] = row
    return ids


def engine_ids(transcriber: Transcriber, clips: list[np.ndarray]) -> list[list[int]]:
    """Returns the engine's ids; all clips wait from the start, the longest first."""
    requests = [transcriber.request(clip) for clip in clips]
    for request in sorted(requests, key=lambda request: -request.num_tokens):
        transcriber.engine.submit(request)
    transcriber.engine.run()
    return [request.future.result().ids for request in requests]


def ids_in_flight(transcriber: Transcriber, clips: list[np.ndarray], most: int) -> list[list[int]]:
    """Returns the ids of a running engine that is given the next clip whenever fewer than `most` are in its hands."""
    room, answers = threading.Semaphore(most), []
    for clip in clips:
        room.acquire()
        answers.append(transcriber.submit(clip))
        answers[-1].add_done_callback(lambda _: room.release())
    return [answer.result().ids for answer in answers]


def timed(name: str, transcribe: Callable[[list[np.ndarray]], object], clips: list[np.ndarray], **figures: object) -> dict:
    """Measures the seconds of audio transcribed per second when all clips come at once."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    transcribe(clips)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    row = {
        "name": name,
        "audio_s_per_s": seconds_of(clips) / seconds,
        "num_clips": len(clips),
        "mean_clip_s": seconds_of(clips) / len(clips),
        "tokens_a_clip": NUM_TOKENS,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }
    return row | figures


def divergence(ids: list[list[int]], alone: list[list[int]]) -> dict:
    """Counts how often a token differs from the one chosen alone after the same tokens, and in how many clips any does.

    This is the worst case: with random weights, the likeliest tokens lie closer together than with trained ones.
    """
    pairs = zip(ids, alone, strict=True)
    same = [next((i for i, token in enumerate(row) if token != other[i]), NUM_TOKENS) for row, other in pairs]
    num_apart = sum(count < NUM_TOKENS for count in same)
    return {"tokens_diverging": num_apart / (sum(same) + num_apart), "clips_diverging": num_apart / len(same)}


def one_client(name: str, transcriber: Transcriber, clips: list[np.ndarray]) -> dict:
    """Measures latencies when each clip is sent once the previous one is answered."""
    first, whole = [], []
    for clip in clips:
        came: list[float] = []
        started = time.perf_counter()
        transcriber.submit(clip, lambda token, came=came: came.append(time.perf_counter())).result()
        first.append(1000 * (came[0] - started))
        whole.append(1000 * (time.perf_counter() - started))
    p95 = float(np.percentile(whole, 95))
    return {"name": name, "median_ms": median(whole), "p95_ms": p95, "first_token_ms": median(first), "num_clips": len(clips)}


def kernel_shares(name: str, run: Callable[[], object]) -> dict:
    """Measures where the GPU's time goes, in ms by kind of kernel, and how long it is idle."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall_ms = 1000 * (time.perf_counter() - started)
    kernels = [event for event in profiled.key_averages() if event.self_device_time_total and not event.self_cpu_time_total]
    groups: dict[str, float] = {}
    for kernel in kernels:
        group = next((group for group, words in KERNELS.items() if any(word in kernel.key for word in words)), "other")
        groups[group] = groups.get(group, 0.0) + kernel.self_device_time_total / 1e3
    busy_ms = sum(groups.values())
    return {"name": name, "wall_ms": wall_ms, "gpu_ms": busy_ms, **dict(sorted(groups.items(), key=lambda group: -group[1]))}


def profiles(name: str, transcriber: Transcriber, rows: int) -> Iterator[dict]:
    """Profiles one prefill of as many clips as join at once, and one decode step of `rows` transcripts midway."""
    runner, clips = transcriber.runner, noise_pcm(rows, seed=7)
    requests = [transcriber.request(clip) for clip in clips]
    runner.join(requests)
    some = requests[:PROFILED_CLIPS]
    runner.prefill(some)()
    audio_s = seconds_of([request.pcm for request in some])
    yield kernel_shares(f"{name}: prefill of {len(some)} clips, {audio_s:.0f} s", lambda: runner.prefill(some)())
    for request in requests:
        request.num_launched = NUM_TOKENS // 2
    runner.decode(requests)()
    yield kernel_shares(f"{name}: decode step of {rows} transcripts", lambda: runner.decode(requests)())
    for request in requests:
        runner.leave(request)


def load_model(folder: Path, window: str) -> ASRModel:
    torch.manual_seed(0)
    return ASRModel(model_config(folder, window)).to("cuda")


def ready(model: ASRModel) -> tuple[Transcriber, float]:
    """Returns a warm engine, and how long it took to warm up."""
    torch.compiler.reset()  # code compiled for another kind of weights
    gc.collect()
    torch.cuda.empty_cache()
    started = time.perf_counter()
    transcriber = Transcriber(model, NUM_TOKENS)
    transcriber.engine.scheduler.end_id = NO_END
    transcriber.warm_up()
    return transcriber, time.perf_counter() - started


def engine_rows(model: ASRModel, kind: str, clips: list[np.ndarray]) -> Iterator[dict]:
    """Yields all figures of the engine with one kind of weights and window."""
    transcriber, warm_up_s = ready(model)
    engine_ids(transcriber, noise_pcm(NUM_CLIPS, seed=1))  # transforms of many lengths are planned
    alone = [engine_ids(transcriber, [clip])[0] for clip in clips[:COMPARED_CLIPS]]
    figures = {"slots": transcriber.rows_at_once, "cuda_graphs": transcriber.runner.graphed, "warm_up_s": warm_up_s}
    answers: list[list[list[int]]] = []  # of each pass

    def transcribe(clips: list[np.ndarray]) -> None:
        answers.append(engine_ids(transcriber, clips))

    passes = [timed(f"engine, {kind}", transcribe, clips, **figures) for _ in range(PASSES)]
    row = sorted(passes, key=lambda row: row["audio_s_per_s"])[PASSES // 2]
    yield row | divergence(answers[0][:COMPARED_CLIPS], alone)
    transcriber.engine.start()
    at_once = partial(ids_in_flight, transcriber, most=IN_FLIGHT)
    yield timed(f"engine, {kind}, {IN_FLIGHT} clips in flight", at_once, clips)
    yield one_client(f"engine, {kind}, one client", transcriber, noise_pcm(CLIENT_CLIPS, seed=9))
    transcriber.engine.close()
    yield from profiles(f"engine, {kind}", transcriber, PROFILED_ROWS)


def offline_rows(folder: Path) -> Iterator[dict]:
    """Yields all figures of one process, in order."""
    yield {"name": "bf16 product of 8192 x 8192", "tflops": matmul_tflops(), "torch": torch.__version__}
    model, clips = load_model(folder, "full"), noise_pcm(NUM_CLIPS, seed=0)
    some = clips[:SEED_CLIPS]
    generate_ids(model, some[:1], 1, whole_window=True)
    yield timed("the seed's snippet, one clip at a time", lambda clips: generate_ids(model, clips, 1, whole_window=True), some)
    yield from generate_rows(model, clips)
    some = clips[:MAX_PASSING_ROWS]
    texts_in_passing(model, some[:2])
    yield timed("validation in a training, without graphs", lambda clips: texts_in_passing(model, clips), some)
    yield from engine_rows(model, "bf16, exact encoder", clips)
    model.config.encoder_window = "trimmed"
    yield from engine_rows(model, "bf16, trimmed", clips)
    freeze_to_fp8(model, trains=False)
    yield from engine_rows(model, "FP8, trimmed", clips)


def generate_rows(model: ASRModel, clips: list[np.ndarray]) -> Iterator[dict]:
    """Measures transformers' `generate` in batches, with the exact and the trimmed encoder."""
    for window, kind in (("full", "exact encoder"), ("trimmed", "trimmed")):
        model.config.encoder_window = window
        alone = generate_ids(model, clips[:SEED_CLIPS], 1)
        generate_ids(model, clips[:GENERATE_ROWS], GENERATE_ROWS)
        ids: list[list[int]] = []
        name = f"transformers' generate, {kind}, batches of {GENERATE_ROWS}"
        row = timed(name, lambda clips, ids=ids: ids.extend(generate_ids(model, clips, GENERATE_ROWS)), clips[:GENERATE_CLIPS])
        yield row | divergence(ids[:SEED_CLIPS], alone)
    model.config.encoder_window = "full"
