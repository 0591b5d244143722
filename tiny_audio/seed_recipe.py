"""The seed's training step, as it was: the baseline that the benchmark holds ours against. Nothing else uses it.

Rows padded to 30 s, so 750 audio tokens each; 8 rows at a time, 4 times a step; gradient checkpointing; logits at all
positions; projector and optimizer in bfloat16. Its authors' own run: 18:14 for 500 steps on one H100, 14.6 rows/s.
It padded on the left and used the package flash-attn; here rows are padded on the right without a mask, so that torch's
own FlashAttention runs, which is as fast.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.asr_modeling import ASRModel
from tiny_audio.features import SAMPLES_PER_TOKEN, log_mel, pad_waveforms
from tiny_audio.shards import Clip
from tiny_audio.text import IGNORED_LABEL, label_ids

MICRO_BATCH_ROWS = 8


class SeedRecipe:
    """Trains a projector of its own between a model's backbones; leaves the backbones as they were once closed."""

    def __init__(self, model: ASRModel):
        self.model, device = model, model.decoder.device
        width, out = model.encoder.config.d_model, model.decoder.config.hidden_size
        layers = [
            nn.Conv1d(width, width, 3, 2, 1, bias=False),
            nn.Linear(width, out, bias=False),
            nn.Linear(out, out, bias=False),
        ]
        self.conv, self.linear_1, self.linear_2 = (layer.to(device, torch.bfloat16) for layer in layers)
        self.weights = [weight for layer in layers for weight in layer.parameters()]
        self.adamw = torch.optim.AdamW(self.weights, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
        model.decoder.train()  # or transformers would not checkpoint

    def close(self) -> None:
        self.model.decoder.gradient_checkpointing_disable()
        self.model.decoder.eval()

    def _loss(self, clips: list[Clip]) -> torch.Tensor:
        model, device = self.model, self.model.decoder.device
        pcm = pad_waveforms([torch.from_numpy(clip.pcm) for clip in clips], model.window_num_samples).to(device)
        with torch.no_grad():
            encoded = model.encoder(log_mel(pcm, model.num_mels).to(torch.bfloat16)).last_hidden_state
        audio = self.linear_2(gelu(self.linear_1(self.conv(encoded.transpose(1, 2)).transpose(1, 2))))
        answers = label_ids(model.tokenizer, model.prompt, [clip.text for clip in clips])
        num_audio = model.window_num_samples // SAMPLES_PER_TOKEN
        before = len(model.prompt.prefix) + num_audio + len(model.prompt.suffix)
        ids = [torch.tensor([*model.prompt.prefix, *[0] * num_audio, *model.prompt.suffix, *row]) for row in answers]
        labels = [torch.tensor([*[IGNORED_LABEL] * before, *row]) for row in answers]
        ids = pad_sequence(ids, batch_first=True).to(device)
        labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL).to(device)
        is_audio = torch.zeros_like(ids, dtype=torch.bool)
        is_audio[:, len(model.prompt.prefix) : before - len(model.prompt.suffix)] = True
        inputs = model.decoder.model.embed_tokens(ids)
        inputs = inputs.masked_scatter(is_audio[..., None].expand_as(inputs), audio.flatten(0, 1).to(inputs.dtype))
        return model.decoder(inputs_embeds=inputs, labels=labels, use_cache=False).loss

    def prepare(self, clips: list[Clip]) -> list[Clip]:
        return clips

    def __call__(self, clips: list[Clip]) -> torch.Tensor:
        """One optimizer step over rows in the order given; returns the mean of the micro-batches' losses."""
        total = torch.zeros((), device=self.model.decoder.device)
        parts = [clips[i : i + MICRO_BATCH_ROWS] for i in range(0, len(clips), MICRO_BATCH_ROWS)]
        for part in parts:
            loss = self._loss(part) / len(parts)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        return total
