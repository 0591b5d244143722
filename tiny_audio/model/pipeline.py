"""transformers' pipeline for speech, which takes an `ASRModel` too."""

from __future__ import annotations

from transformers import AutomaticSpeechRecognitionPipeline

from tiny_audio.model.asr import ASRModel
from tiny_audio.model.prompt import clean_transcript
from tiny_audio.transformers_names import decode_with_generate, replace_pipeline

TASK = "automatic-speech-recognition"


def _registered(pipeline_class: type[AutomaticSpeechRecognitionPipeline]) -> type[AutomaticSpeechRecognitionPipeline]:
    """Puts it in the place of the class that it extends."""
    replace_pipeline(TASK, pipeline_class)
    return pipeline_class


@_registered
class SpeechPipeline(AutomaticSpeechRecognitionPipeline):
    """Transcribes as `Transcriber` does where the model is an `ASRModel`, and as the class it extends where it is another.

    An `ASRModel` has its tokenizer and feature extractor from its backbones, and no files of them in its folder.
    """

    def __init__(self, model, feature_extractor=None, tokenizer=None, **kwargs):
        is_ours = isinstance(model, ASRModel)
        if is_ours:
            feature_extractor, tokenizer = model.feature_extractor, model.tokenizer
        if feature_extractor is None or tokenizer is None:
            raise ValueError(f"{TASK}: the model has no tokenizer or feature extractor in its folder; pass both to pipeline()")
        super().__init__(model, feature_extractor, tokenizer, **kwargs)
        if is_ours:
            decode_with_generate(self)

    def postprocess(self, model_outputs, **kwargs):
        """The transcript, with single spaces from an `ASRModel`."""
        transcript = super().postprocess(model_outputs, **kwargs)
        if isinstance(self.model, ASRModel):
            transcript["text"] = clean_transcript(transcript["text"])
        return transcript
