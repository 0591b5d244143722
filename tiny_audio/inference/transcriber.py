"""Waveforms to text: the one path that evaluation, batch transcription, validation and serving share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tiny_audio.audio.clip import SAMPLE_RATE, padded_num_samples, require_clips
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.prompt import END_OF_TURN, clean_transcript

MAX_BATCH_S = 960.0  # seconds of padded audio in a batch: 32 clips of 30 s


@dataclass(frozen=True)
class Transcript:
    """Holds what the decoder wrote for one clip; `complete` is False if it reached its token limit, as it does in a loop."""

    text: str
    num_tokens: int
    complete: bool


class Transcriber:
    """Transcribes clips on the model's device, in batches of similar length."""

    def __init__(self, model: ASRModel, **generate_options):
        self.model, self.generate_options = model, generate_options
        self.end_id = model.tokenizer.convert_tokens_to_ids(END_OF_TURN)

    @classmethod
    def load(cls, model_path: str, device: str = "cpu", **config) -> Transcriber:
        """Loads a model that `ASRModel.save_pretrained` wrote, from a folder or the hub."""
        return cls(ASRModel.from_pretrained(model_path, **config).to(device))

    @property
    def max_duration_s(self) -> float:
        """Longest clip that the encoder takes, in seconds."""
        return self.model.window_num_samples / SAMPLE_RATE

    @property
    def rows_at_once(self) -> int:
        """Number of clips that fit one batch if all have the longest duration."""
        return max(1, int(MAX_BATCH_S // self.max_duration_s))

    def texts(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Transcribes clips as a call does, but returns only their texts."""
        return [transcript.text for transcript in self(waveforms)]

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """Transcribes (S,) int16 clips at 16 kHz, in the order given.

        Raises:
            ValueError: a clip is longer than the encoder's window, or has several channels.
        """
        require_clips(waveforms, self.model.window_num_samples)
        transcripts: list[Transcript | None] = [None] * len(waveforms)
        for rows in self._batches([len(waveform) for waveform in waveforms]):
            for row, transcript in zip(rows, self._transcribe_batch([waveforms[row] for row in rows]), strict=True):
                transcripts[row] = transcript
        return transcripts

    def _padded_num_samples(self, longest: int) -> int:
        """Returns the padded length of a batch whose longest clip has `longest` samples."""
        return padded_num_samples(longest, self.model.window_num_samples, self.model.trimmed)

    def _batches(self, num_samples: list[int]) -> Iterator[list[int]]:
        """Yields the row numbers of each batch, shortest clips first, with at most MAX_BATCH_S padded seconds in a batch."""
        rows: list[int] = []
        for row in sorted(range(len(num_samples)), key=num_samples.__getitem__):
            if rows and (len(rows) + 1) * self._padded_num_samples(num_samples[row]) > MAX_BATCH_S * SAMPLE_RATE:
                yield rows
                rows = []
            rows.append(row)
        if rows:
            yield rows

    @torch.inference_mode()
    def _transcribe_batch(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        device = self.model.decoder.device
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        clips = [torch.from_numpy(np.array(waveform)) for waveform in waveforms]  # copies: Ray's arrays are read-only
        padded = pad_waveforms(clips, self._padded_num_samples(int(num_samples.max()))).to(device)
        ids = self.model.generate(log_mel(padded, self.model.num_mels), num_samples, **self.generate_options).tolist()
        return [self._transcript(row) for row in ids]

    def _transcript(self, ids: list[int]) -> Transcript:
        complete = self.end_id in ids
        text_ids = ids[: ids.index(self.end_id)] if complete else ids
        text = self.model.tokenizer.decode(text_ids, skip_special_tokens=True)
        return Transcript(clean_transcript(text), len(text_ids), complete)
