"""SmolLM3 (Bakouch et al. 2025): Llama without rotary positions on every fourth layer."""

from __future__ import annotations

from torch import nn

from tiny_audio.model.decoders.family import Family


def has_rotations(attention: nn.Module) -> bool:
    """Says what config.json does in `no_rope_layers`, where 1 stands for a layer with rotary positions."""
    return bool(attention.use_rope)


# The flags are the template's own: no thinking, and neither today's date nor its long instructions.
SMOLLM3 = Family("smollm3", "SmolLM3", system_prompt="/no_think /system_override", has_rotations=has_rotations)
