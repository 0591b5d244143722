"""Turns waveforms into text, for evaluation, batch transcription, validation and serving alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from tiny_audio.audio.clip import SAMPLE_RATE, require_clips
from tiny_audio.config import one_line
from tiny_audio.inference.engine import Engine
from tiny_audio.inference.hearing import DOUBTFUL, align_words, disagreement
from tiny_audio.inference.runner import MAX_PREFILL_ROWS, MAX_PREFILL_TOKENS, Runner
from tiny_audio.inference.scheduler import Answer, Request, Scheduler, Token
from tiny_audio.inference.words import Word
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.ctc_head import heard_text
from tiny_audio.model.fp8 import freeze_to_fp8, require_fp8
from tiny_audio.model.prompt import clean_transcript
from tiny_audio.model.siblings import load_sibling


@dataclass(frozen=True)
class Transcript:
    """Holds what the decoder wrote for one clip.

    `complete` and `looped` are those of an `Answer`.

    Where the model has a CTC head, `heard` are the letters that it heard by itself, and `disagreement` is how far the text is
    from them, from 0 to 1. `words` has the times of the words, where they were asked for and can be known.
    """

    text: str
    num_tokens: int
    complete: bool
    looped: bool = False
    heard: str | None = None
    disagreement: float | None = None
    words: list[Word] | None = None

    @property
    def doubtful(self) -> bool:
        """Whether the text is far from what the CTC head heard, or one of them is silent; False where there is no head."""
        return self.disagreement is not None and self.disagreement > DOUBTFUL


class Transcriber:
    """Transcribes clips on the model's device, as many at once as its cache has slots.

    Args:
        max_new_tokens: the limit of a transcript; by default, the model config's.
        max_slots: the most clips at once, by default 512 on a GPU and 32 elsewhere; a GPU's fit into half of its free memory.
        graphs: whether layers are compiled and run as CUDA graphs (see `warm_up`), which is the default on a GPU. The model
            keeps its compiled layers.
        max_joining: the most clips that join between two decode steps. All at once is fastest where all are there. But those
            that begin together also end together: where each has a caller who then sends the next one, the device waits.
    """

    def __init__(
        self,
        model: ASRModel,
        max_new_tokens: int | None = None,
        max_slots: int | None = None,
        graphs: bool | None = None,
        max_joining: int = MAX_PREFILL_ROWS,
    ):
        graphs = model.decoder.device.type == "cuda" if graphs is None else graphs
        self.model, self.max_new_tokens = model, max_new_tokens or model.config.max_new_tokens
        self.runner = Runner(model, self.max_new_tokens, max_slots, graphs)
        limits = (min(max_joining, MAX_PREFILL_ROWS), MAX_PREFILL_TOKENS)
        scheduler = Scheduler(self.runner.cache.num_slots, model.prompt.end_id, *limits, num_shared_tokens=len(self.runner.head))
        self.engine = Engine(self.runner, scheduler)

    @classmethod
    def load(
        cls,
        model_path: str,
        device: str = "cpu",
        fp8: bool = False,
        max_slots: int | None = None,
        max_joining: int = MAX_PREFILL_ROWS,
    ) -> Transcriber:
        """Loads a model that `ASRModel.save_pretrained` wrote, from a folder, a URL or the hub.

        Args:
            model_path: the model.
            device: a torch device.
            fp8: whether the backbones' linear layers compute in FP8, and all else in bfloat16.
            max_slots: the most clips at once.
            max_joining: the most clips that join between two decode steps.

        Raises:
            ConfigError: this machine's GPU, or its lack of one, cannot compute in FP8.
        """
        if not fp8:
            return cls(ASRModel.from_pretrained(model_path).to(device), max_slots=max_slots, max_joining=max_joining)
        require_fp8()
        model = ASRModel.from_pretrained(model_path, dtype="bfloat16").to(device)
        freeze_to_fp8(model, trains=False)
        return cls(model, max_slots=max_slots, max_joining=max_joining)

    def add(self, name: str, model_path: str) -> None:
        """Loads the projector of another saved model with the same backbones, which `request` then knows by its name.

        Raises:
            ConfigError: the model differs from the first in more than its projector.
        """
        self.runner.siblings[name] = load_sibling(self.model, model_path)

    def warm_up(self) -> None:
        """Compiles and captures the graphs, if there are any, so that no clip waits for them; takes 10 to 20 s on an H100.

        A machine that cannot, for want of a C compiler or of memory, runs without them, and says so.
        """
        if self.runner.graphed:
            try:
                self.runner.capture()
            except Exception as error:  # compilers and CUDA raise any
                self.runner.fall_back(one_line(error))
            self([np.zeros(self.model.window_num_samples, np.int16)] * 2)

    def describe(self) -> dict[str, float | str | bool]:
        """Says what the engine runs with; `fallback` says why it runs without CUDA graphs where it should have them."""
        return {
            "max_duration_s": self.max_duration_s,
            "slots": self.rows_at_once,
            "largest_batch": self.engine.scheduler.most_live,
            "cuda_graphs": self.runner.graphed,
            "fallback": self.runner.fallback,
            "word_times": self.model.ctc_head is not None,
        }

    @property
    def max_duration_s(self) -> float:
        """Longest clip that the encoder takes, in seconds."""
        return self.model.window_num_samples / SAMPLE_RATE

    @property
    def rows_at_once(self) -> int:
        """Number of clips that run together."""
        return self.runner.cache.num_slots

    def texts(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Transcribes clips as a call does, but returns only their texts."""
        return [transcript.text for transcript in self(waveforms)]

    def __call__(self, waveforms: Sequence[np.ndarray], with_words: bool = False) -> list[Transcript]:
        """Transcribes (S,) int16 clips at 16 kHz, in the order given.

        Args:
            waveforms: the clips.
            with_words: whether to find the times of the words, too.

        Raises:
            ValueError: a clip is empty, longer than the encoder's window, or has several channels.
        """
        require_clips(waveforms, self.model.window_num_samples)  # of (S, 2) stereo, each sample would be a clip
        requests = [self.request(waveform) for waveform in waveforms]
        for request in sorted(requests, key=lambda request: -request.num_tokens):  # the longest first, so that all end together
            self.engine.submit(request)
        if self.engine.thread is None:
            self.engine.run()
        return [self.transcript(request.future.result(), with_words) for request in requests]

    def submit(self, waveform: np.ndarray, on_token: Callable[[Token], None] | None = None) -> Future[Answer]:
        """Hands a clip to the engine's thread; returns the future of its answer, which `transcript` turns into text."""
        return self.engine.submit(self.request(waveform, on_token))

    def request(self, waveform: np.ndarray, on_token: Callable[[Token], None] | None = None, model: str | None = None) -> Request:
        """Checks a clip and returns the engine's request for it.

        Args:
            waveform: (S,) int16 samples at 16 kHz.
            on_token: is called with each token, on the engine's thread.
            model: the name of a model that was added; None is the first.

        Raises:
            ValueError: the clip is empty, longer than the encoder's window, or has several channels.
        """
        require_clips([waveform], self.model.window_num_samples)
        if not len(waveform):
            raise ValueError("a clip has no samples")
        return Request(waveform, self.runner.prompt_tokens(len(waveform)), self.max_new_tokens, on_token, model)

    def transcript(self, answer: Answer, with_words: bool = False) -> Transcript:
        """Turns an answer of the engine into a transcript, with the times of its words if they are asked for."""
        text = clean_transcript(self.model.tokenizer.decode(answer.ids, skip_special_tokens=True))
        transcript = Transcript(text, len(answer.ids), answer.complete, answer.looped)
        if answer.letters is None:
            return transcript
        heard, words = heard_text(answer.letters), align_words(text, answer.letters) if with_words else None
        return replace(transcript, heard=heard, disagreement=disagreement(text, heard), words=words)


MAX_PASSING_ROWS = 64


def texts_in_passing(model: ASRModel, waveforms: Sequence[np.ndarray]) -> list[str]:
    """Transcribes clips with a model that is also in other use, such as training; keeps no engine afterwards."""
    return Transcriber(model, max_slots=MAX_PASSING_ROWS, graphs=False).texts(waveforms)
