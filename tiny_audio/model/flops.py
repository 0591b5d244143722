"""Counts the operations that training needs, and knows what devices can do at most. Their ratio is the MFU.

MFU is the model FLOPs utilisation of PaLM (Chowdhery et al. 2022): needed operations a second, over the device's peak for
dense bf16 products. Padding, recomputing, and whatever else the implementation does on top counts as waste, not as use.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from tiny_audio.audio.clip import num_audio_tokens
from tiny_audio.model.lora import adapter_weights
from tiny_audio.model.packing import PackedBatch

# Dense bf16 TFLOP/s by the start of CUDA's name of the device, from NVIDIA's data sheets; the first that fits counts.
PEAK_TFLOPS = {
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA H200": 989,
    "NVIDIA GH200": 989,
    "NVIDIA B200": 2250,
    "NVIDIA A100": 312,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
}


def peak_flops(device: torch.device) -> float | None:
    """Returns the dense bf16 operations a second that a device can do at most; None if they are not known, as for CPUs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((1e12 * tflops for start, tflops in PEAK_TFLOPS.items() if name.startswith(start)), None)


class FlopCounter:
    """Counts the operations that training a model needs: two for every multiply-add.

    The encoder runs forward over its window, unless its frames are kept. The projector runs forward and back to its
    weights, the decoder forward and back to its inputs, an adapter forward and back to both. The decoder's last layer and
    logits count at the label positions only. The head of the prompts, which is computed once for many clips, padding,
    recomputing and the gradients of frozen weights do not count.

    Args:
        model: an `ASRModel` with whole weights; ZeRO 3 may share them out later.
    """

    def __init__(self, model: PreTrainedModel):
        self.encoder, self.decoder, self.trimmed = model.encoder.config, model.decoder.config, model.trimmed
        self.frames_per_token = model.frames_per_token
        self.num_adapter_weights = sum(weight.numel() for weight in adapter_weights(model.decoder).values())
        self.num_projector_weights = sum(weight.numel() for weight in model.projector.parameters())
        self.num_head_tokens, self.num_suffix_tokens = len(model.prompt.prefix), len(model.prompt.suffix)

    def of_batch(self, batch: PackedBatch) -> float:
        """Counts what a packed batch needs; clips whose encoder frames are known are not encoded."""
        num_tokens = np.array([num_audio_tokens(len(clip.pcm), self.frames_per_token) for clip in batch.rows])
        is_encoded = np.arange(len(batch.rows)) >= len(batch.rows) - len(batch.fresh)
        return self(num_tokens, np.diff(batch.answers.bounds.numpy()), is_encoded)

    def __call__(self, num_tokens: np.ndarray, num_labels: np.ndarray, is_encoded: np.ndarray) -> float:
        """Counts what clips need.

        Args:
            num_tokens: (B,) audio tokens of each clip.
            num_labels: (B,) label tokens of each.
            is_encoded: (B,) whether the encoder runs on it.
        """
        tokens, labels = num_tokens.astype(float), num_labels.astype(float)
        projector = 2 * tokens * 2 * self.num_projector_weights
        adapter = 3 * 2 * (tokens + self.num_suffix_tokens + labels - 1) * self.num_adapter_weights
        return float((is_encoded * self._encoder(tokens) + projector + adapter + 2 * self._decoder(tokens, labels)).sum())

    def _encoder(self, tokens: np.ndarray) -> np.ndarray:
        """Counts a forward pass over each clip; attention is over all of its frames."""
        encoder, width = self.encoder, self.encoder.d_model
        frames = self.frames_per_token * tokens if self.trimmed else np.full(len(tokens), float(encoder.max_source_positions))
        layer = frames * (8 * width**2 + 4 * width * encoder.encoder_ffn_dim) + 4 * frames**2 * width
        stem = frames * (2 * 2 * 3 * encoder.num_mel_bins * width + 2 * 3 * width**2)
        return encoder.encoder_layers * layer + stem

    def _decoder(self, tokens: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Counts a forward pass over each clip behind the head; attention is causal."""
        decoder, hidden = self.decoder, self.decoder.hidden_size
        head = getattr(decoder, "head_dim", None) or hidden // decoder.num_attention_heads
        width = decoder.num_attention_heads * head
        queries, keys_values = 2 * hidden * width, 2 * hidden * 2 * decoder.num_key_value_heads * head
        rest = queries + 6 * hidden * decoder.intermediate_size
        length = tokens + self.num_suffix_tokens + labels - 1
        layer = length * (queries + keys_values + rest) + 4 * length * (self.num_head_tokens + length / 2) * width
        last = length * keys_values + labels * (queries + rest) + 4 * labels * (self.num_head_tokens + length) * width
        return (decoder.num_hidden_layers - 1) * layer + last + labels * 2 * hidden * decoder.vocab_size
