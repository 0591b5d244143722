"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases at queries, keys and values, which its linear layers hold."""

from __future__ import annotations

from tiny_audio.model.decoders.family import Family

QWEN2 = Family("qwen2", "Qwen2")
