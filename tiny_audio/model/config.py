"""`ASRConfig`: what it takes to rebuild a model: the two backbones' ids, the projector's kind, and how audio is padded."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

PROJECTOR_TYPES = ("mlp",)
ENCODER_WINDOWS = ("full", "trimmed")


class ASRConfig(PretrainedConfig):
    """Configuration of `ASRModel`.

    Args:
        audio_model_id: Whisper checkpoint: a hub id, a local folder in the hub's format, or an embedded backbone.
        text_model_id: SmolLM3 checkpoint, likewise; its tokenizer must have a chat template.
        projector_type: "mlp" (Conv1d of stride 2, Linear, GELU, Linear).
        encoder_window: "full" pads each clip to the encoder's window (30 s), as Whisper was trained; "trimmed" encodes
            each at its own length: less work, slightly different encodings.
        max_new_tokens: longest transcript, in tokens.
        format_version: version of the saved model's format; a config.json without one is of version 1.
        **kwargs: `PretrainedConfig`'s; `dtype` (default float32) is the backbones', `attn_implementation` the decoder's
            while it generates. The projector is float32 whatever they are.

    Raises:
        ValueError: `projector_type` or `encoder_window` is none of the known ones.
    """

    model_type = "tiny_audio"

    def __init__(
        self,
        audio_model_id: str = "openai/whisper-large-v3-turbo",
        text_model_id: str = "HuggingFaceTB/SmolLM3-3B",
        projector_type: str = "mlp",
        encoder_window: str = "full",
        max_new_tokens: int = 256,
        format_version: int = 1,
        **kwargs: Any,
    ):
        if projector_type not in PROJECTOR_TYPES:
            raise ValueError(f"projector_type must be one of {PROJECTOR_TYPES}, not {projector_type!r}")
        if encoder_window not in ENCODER_WINDOWS:
            raise ValueError(f"encoder_window must be one of {ENCODER_WINDOWS}, not {encoder_window!r}")
        self.audio_model_id = audio_model_id
        self.text_model_id = text_model_id
        self.projector_type = projector_type
        self.encoder_window = encoder_window
        self.max_new_tokens = max_new_tokens
        self.format_version = format_version
        super().__init__(**kwargs)
