"""What we use of transformers that it does not document: its names may change with any version, and they change here alone.

`tests/test_private_names.py` looks for each in the installed transformers. `model/layers.py` and `ASRModel.decode` compute
with the parts of Whisper's and SmolLM3's layers by their names in checkpoints, which do not change.
"""

from __future__ import annotations

# Where transformers keeps its registries, and the module of ours that enters itself there.
REGISTRIES = {
    "transformers.models.auto.configuration_auto": "tiny_audio.model.config",
    "transformers.models.auto.modeling_auto": "tiny_audio.model.auto",
    "transformers.pipelines": "tiny_audio.model.pipeline",
}


def whisper_encoder_class() -> type:
    """Whisper's encoder alone: the public `WhisperModel` would load the decoder too."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder


def attention_of(config) -> str | None:
    """The `attn_implementation` that a config was given: it has no public reader."""
    return config._attn_implementation


def unpadding() -> tuple:
    """`upad_input`, `unpad_input`, `pad_input`: what transformers does around FlashAttention's kernel."""
    from transformers.modeling_flash_attention_utils import _pad_input, _unpad_input, _upad_input

    return _upad_input, _unpad_input, _pad_input


def replace_pipeline(task: str, pipeline_class: type) -> None:
    """Puts a class in the place of a task's own, which the public `register_pipeline` does with a warning alone.

    To the class, a tokenizer and feature extractor are optional: `pipeline` looks for their files, and does not insist.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    pipeline_class._load_tokenizer = pipeline_class._load_feature_extractor = None
    PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline_class


def decode_with_generate(pipeline) -> None:
    """Makes a speech pipeline call the model's `generate` as it is: by its table it takes unknown models for CTC's.

    Its own defaults for `generate` (5 beams) are dropped.
    """
    pipeline.type = "seq2seq"
    pipeline._generation_defaults = {}
