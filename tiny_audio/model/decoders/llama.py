"""Llama, and what is built alike: Llama 2 and 3 (Grattafiori et al. 2024), SmolLM2, TinyLlama."""

from __future__ import annotations

from tiny_audio.model.decoders.family import Family

LLAMA = Family("llama", "Llama")
