"""What transformers' Auto classes load an `ASRModel` by. It imports no models, for transformers' tokenizers import the
registry of models too, and drivers do without the 2 s and 150 MB.
"""

from __future__ import annotations

from transformers import AutoModel, AutoModelForSpeechSeq2Seq

from tiny_audio.model.config import ASRConfig


def _registered(model_class: type) -> type:
    """Tells the Auto classes that speech models and any models are found by."""
    for auto in (AutoModel, AutoModelForSpeechSeq2Seq):
        auto.register(ASRConfig, model_class, exist_ok=True)
    return model_class


@_registered
class LazyASRModel:
    """Stands for `ASRModel` in the registry, with the two methods that the Auto classes call."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As `ASRModel.from_pretrained`, which it calls."""
        from tiny_audio.model.asr import ASRModel

        kwargs.pop("adapter_kwargs", None)  # which the Auto classes add where peft is installed; our adapters are found without
        return ASRModel.from_pretrained(*args, **kwargs)

    @classmethod
    def _from_config(cls, *args, **kwargs):
        """As `PreTrainedModel._from_config`: this is what `AutoModel.from_config` calls."""
        from tiny_audio.model.asr import ASRModel

        return ASRModel._from_config(*args, **kwargs)
