"""Lists the families of decoders, by the `model_type` of their checkpoints."""

from __future__ import annotations

from tiny_audio.model.decoders.llama import LLAMA
from tiny_audio.model.decoders.qwen2 import QWEN2
from tiny_audio.model.decoders.qwen3 import QWEN3
from tiny_audio.model.decoders.smollm3 import SMOLLM3

FAMILIES = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3, SMOLLM3)}
