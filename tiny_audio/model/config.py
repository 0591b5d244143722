"""`ASRConfig` says what it takes to rebuild a model: the backbones' ids, the projector's kind, and how audio is padded."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from transformers import AutoConfig, PretrainedConfig

from tiny_audio.config import ProjectorType
from tiny_audio.transformers_names import attention_of

PROJECTOR_TYPES = get_args(ProjectorType)
ENCODER_WINDOWS = ("full", "trimmed")
# What PretrainedConfig takes beside its fields, and its older names for them.
BASE_SETTINGS = {"attn_implementation", "model_type", "name_or_path", "output_attentions", "torch_dtype"}


def _registered(config_class: type[PretrainedConfig]) -> type[PretrainedConfig]:
    """Tells `AutoConfig` which class reads a config.json of this `model_type`."""
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    return config_class


@_registered
class ASRConfig(PretrainedConfig):
    """Configures an `ASRModel`.

    Args:
        audio_model_id: Whisper checkpoint: a hub id, a local folder in the hub's format, or an embedded backbone.
        text_model_id: SmolLM3, Llama, Qwen2 or Qwen3 checkpoint, likewise; its tokenizer must have a chat template.
        projector_type: "mlp" (Conv1d of stride 2, Linear, GELU, Linear), "stack", "swiglu", "moe" or "conv"; see `projectors.py`.
        frames_per_token: encoder frames (50/s) that an audio token is made of; None is the projector's own number.
        encoder_window: "full" pads each clip to the encoder's window (30 s), as Whisper was trained; "trimmed" encodes
            each at its own length: less work, slightly different encodings.
        max_new_tokens: longest transcript, in tokens.
        format_version: version of the saved model's format; a config.json without one is of version 1.
        **kwargs: `PretrainedConfig`'s own; `dtype` (default float32) is the backbones', `attn_implementation` the
            decoder's while it generates. The projector is float32 whatever they are.

    Raises:
        ValueError: `projector_type` or `encoder_window` is none of the known ones, or a setting is unknown.
    """

    model_type = "tiny_audio"

    def __init__(
        self,
        audio_model_id: str = "openai/whisper-large-v3-turbo",
        text_model_id: str = "HuggingFaceTB/SmolLM3-3B",
        projector_type: str = "mlp",
        frames_per_token: int | None = None,
        encoder_window: str = "full",
        max_new_tokens: int = 256,
        format_version: int = 1,
        **kwargs: Any,
    ):
        if projector_type not in PROJECTOR_TYPES:
            raise ValueError(f"projector_type must be one of {PROJECTOR_TYPES}, not {projector_type!r}")
        if encoder_window not in ENCODER_WINDOWS:
            raise ValueError(f"encoder_window must be one of {ENCODER_WINDOWS}, not {encoder_window!r}")
        base = {field.name for field in dataclasses.fields(PretrainedConfig)} | BASE_SETTINGS
        unknown = sorted(name for name in kwargs.keys() - base if not name.startswith("_"))
        if unknown:
            raise ValueError(f"ASRConfig has no setting {', '.join(unknown)}; its own are {', '.join(SETTINGS)}")
        self.audio_model_id = audio_model_id
        self.text_model_id = text_model_id
        self.projector_type = projector_type
        self.frames_per_token = frames_per_token
        self.encoder_window = encoder_window
        self.max_new_tokens = max_new_tokens
        self.format_version = format_version
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Builds a config from a dictionary whose entries `kwargs` override.

        Raises:
            ValueError: a value is none of the known ones.
            TypeError: a keyword is unknown, unless `return_unused_kwargs` asks for those.
        """
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        ours = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        kwargs = {name: value for name, value in kwargs.items() if not (name.endswith("dtype") and value == "auto")}
        config, unused = super().from_dict({**config_dict, **ours}, return_unused_kwargs=True, **kwargs)
        if wants_unused:
            return config, unused
        require_no_keywords("ASRConfig.from_pretrained", unused)
        return config

    def replaced(self, **settings: Any) -> ASRConfig:
        """Returns a copy with some settings replaced, which are checked as those of a new config are."""
        return ASRConfig(**{**self.to_dict(), "attn_implementation": attention_of(self), **settings})


SETTINGS = ("audio_model_id", "text_model_id", "projector_type", "frames_per_token", "encoder_window", "max_new_tokens")


def require_no_keywords(function: str, keywords: dict[str, Any]) -> None:
    """Raises TypeError where a keyword is left that a function does not know.

    One that is None or False asks for nothing: transformers' Auto classes pass some on like that.
    """
    asked = [name for name, value in keywords.items() if not (value is None or value is False)]
    unknown = [name for name in asked if not name.startswith("_")]
    if unknown:
        raise TypeError(f"{function} does not know the keyword {', '.join(unknown)}")
