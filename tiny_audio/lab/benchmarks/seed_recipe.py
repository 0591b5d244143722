"""The training step of the seed, the project that this one began from: the benchmark's baseline.

It pads rows to 30 s, so each has 750 audio tokens. A step is 4 micro-batches of 8 rows. It uses gradient checkpointing,
computes logits at all positions, and keeps the projector and the optimizer in bfloat16. Its authors report 18:14 for 500
steps on one H100: 14.6 rows/s. They used the package flash-attn; torch's own FlashAttention replaces it here, with
transformers' unpadding around it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import gelu
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface

from tiny_audio.audio.clip import Clip, num_audio_tokens
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.prompt import IGNORED_LABEL, label_ids
from tiny_audio.transformers_names import unpadding

MICRO_BATCH_ROWS, PADDED_S = 8, 30.0
UNPADDED = "tiny_audio_unpadded"  # the name of our attention function in transformers' register


def _flash_attention(module, query, key, value, attention_mask, scaling, **_) -> tuple[torch.Tensor, None]:
    """Takes padding out before the kernel and puts it back behind it, in every layer, as transformers' "flash_attention_2"."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    rows, length = query.shape[:2]
    upad_input, unpad_input, pad_input = unpadding()
    parts = upad_input(query, key, value, attention_mask, length, unpad_input)
    query, key, value, indices, bounds, longest = parts
    attended = varlen_attn(query, key, value, *bounds, *longest, scale=scaling, window_size=(-1, 0))
    return pad_input(attended, indices, rows, length), None


class SeedRecipe:
    """Trains a projector of its own between a model's backbones; `close` leaves the backbones as they were."""

    encodes = True  # the encoder runs in every step
    micro_batch_s = MICRO_BATCH_ROWS * PADDED_S

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
        AttentionInterface.register(UNPADDED, _flash_attention)
        AttentionMaskInterface.register(UNPADDED, lambda *_, attention_mask=None, **__: attention_mask)
        model.decoder.set_attn_implementation(UNPADDED)
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
        model.decoder.train()  # or transformers would not checkpoint

    def use_mask_kernel(self) -> None:
        """Switches to what transformers does without the package flash-attn: one kernel over all rows, with padding masked."""
        self.model.decoder.set_attn_implementation("sdpa")

    def close(self) -> None:
        """Undoes what the recipe changed in the decoder."""
        self.model.decoder.gradient_checkpointing_disable()
        self.model.decoder.set_attn_implementation("sdpa")
        self.model.decoder.eval()

    def _loss(self, clips: list[Clip]) -> torch.Tensor:
        model, device = self.model, self.model.decoder.device
        pcm = pad_waveforms([torch.from_numpy(clip.pcm) for clip in clips], model.window_num_samples).to(device)
        log_mels = log_mel(pcm, model.num_mels).to(torch.bfloat16)
        with torch.autocast(device.type, torch.bfloat16):  # as its Trainer's bf16 option does
            return self._autocast_loss(clips, log_mels)

    def _autocast_loss(self, clips: list[Clip], log_mels: torch.Tensor) -> torch.Tensor:
        model, device = self.model, self.model.decoder.device
        with torch.no_grad():
            encoded = model.encoder(log_mels).last_hidden_state
        audio = self.linear_2(gelu(self.linear_1(self.conv(encoded.transpose(1, 2)).transpose(1, 2))))
        answers = label_ids(model.tokenizer, model.prompt, [clip.text for clip in clips])
        num_audio = num_audio_tokens(model.window_num_samples, 2)  # its convolution has stride 2
        prefix, suffix = model.prompt.prefix, model.prompt.suffix
        before = len(prefix) + num_audio + len(suffix)
        ids = [torch.tensor([*prefix, *[0] * num_audio, *suffix, *row]) for row in answers]
        labels = [torch.tensor([*[IGNORED_LABEL] * before, *row]) for row in answers]
        is_audio = [torch.zeros(len(row), dtype=torch.bool) for row in ids]
        for row in is_audio:
            row[len(prefix) : len(prefix) + num_audio] = True
        ids, labels, is_audio, mask = (
            pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left").to(device)
            for rows, value in ((ids, 0), (labels, IGNORED_LABEL), (is_audio, False), ([torch.ones_like(row) for row in ids], 0))
        )
        inputs = model.decoder.model.embed_tokens(ids)
        inputs = inputs.masked_scatter(is_audio[..., None].expand_as(inputs), audio.flatten(0, 1).to(inputs.dtype))
        return model.decoder(inputs_embeds=inputs, attention_mask=mask, labels=labels, use_cache=False).loss

    def prepare(self, clips: list[Clip]) -> list[Clip]:
        """Returns the clips: the seed packs nothing ahead."""
        return clips

    def __call__(self, clips: list[Clip]) -> torch.Tensor:
        """Trains one step on the clips in their order; returns the mean of the micro-batches' losses."""
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
