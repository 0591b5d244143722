"""Transcribes under ZeRO 3, where each worker holds a shard of every weight and all must call every module equally often.

The engine owns its weights and sets its own pace, so it cannot run there: clips go through transformers' `generate` in
batches, which keeps all workers stepping until the last one is done. The texts equal the engine's, except where those
loop: the engine writes them again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tiny_audio.audio.clip import SAMPLE_RATE, padded_num_samples
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.prompt import clean_transcript

MAX_BATCH_S = 960.0  # padded audio seconds per batch: 32 clips of 30 s


class ShardedTranscriber:
    """Transcribes clips with a model whose weights are sharded across the workers."""

    def __init__(self, model: ASRModel, num_workers: int):
        self.model, self.synced = model, num_workers > 1

    @property
    def rows_at_once(self) -> int:
        """Number of clips that one batch takes, whatever their length."""
        return max(1, int(MAX_BATCH_S * SAMPLE_RATE // self.model.window_num_samples))

    @torch.inference_mode()
    def texts(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Transcribes at most `rows_at_once` int16 clips. All workers must call it."""
        model = self.model
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        window, trimmed = model.window_num_samples, model.trimmed
        longest = padded_num_samples(int(num_samples.max()), window, trimmed, model.frames_per_token)
        clips = pad_waveforms([torch.from_numpy(waveform) for waveform in waveforms], longest).to(model.decoder.device)
        ids = model.generate(log_mel(clips, model.num_mels), num_samples, synced_gpus=self.synced)
        return [clean_transcript(text) for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]
