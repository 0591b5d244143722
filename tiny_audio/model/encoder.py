"""The frozen encoder, out of a whole Whisper checkpoint of any size: 80 mels or 128, of English alone or of many languages."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import BatchFeature, PreTrainedConfig, WhisperFeatureExtractor

from tiny_audio.audio.clip import HOP_SAMPLES, N_FFT, SAMPLE_RATE, SAMPLES_PER_ENCODER_FRAME, require_clips
from tiny_audio.config import ConfigError, one_line, require
from tiny_audio.model.backbone import backbone_path, load_module, read_config, require_weights
from tiny_audio.transformers_names import whisper_encoder_class


class FeatureExtractor(WhisperFeatureExtractor):
    """Whisper's own, but for audio over the window or of several channels.

    Whisper's would cut the first off in silence, and take each sample of (S, 2) stereo for a clip of 30 s.
    """

    def __call__(self, raw_speech, *args, **kwargs) -> BatchFeature:
        """Log-mels of a clip, (S,) at 16 kHz, or of a list of clips; else as `WhisperFeatureExtractor`.

        Raises:
            ValueError: a clip is longer than the encoder's window, or has several channels.
        """
        one = np.ndim(raw_speech[0]) == 0
        require_clips([raw_speech] if one else raw_speech, self.n_samples)
        return super().__call__(raw_speech, *args, **kwargs)


def load_feature_extractor(model_id: str) -> FeatureExtractor:
    """Loads the encoder's own feature extractor, which `features.log_mel` equals.

    Raises:
        ConfigError: preprocessor_config.json is not there, or wants other features than `features.log_mel` makes.
    """
    config = read_encoder_config(model_id)
    try:
        extractor = FeatureExtractor.from_pretrained(backbone_path(model_id))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model_id}: no usable preprocessor_config.json; fetch it again ({one_line(error)})") from None
    ours = {"sampling_rate": SAMPLE_RATE, "n_fft": N_FFT, "hop_length": HOP_SAMPLES, "feature_size": config.num_mel_bins}
    for name, value in ours.items():
        stated = getattr(extractor, name)
        require(stated == value, f"{model_id}: preprocessor_config.json says {name} {stated}, the encoder needs {value}")
    return extractor


def read_encoder_config(model_id: str) -> PreTrainedConfig:
    """Reads the config of a Whisper checkpoint. Else as `read_config`."""
    return read_config(model_id, {"whisper": "Whisper"})


def read_window_s(model_id: str) -> float:
    """Reads the longest audio that a Whisper checkpoint takes, in seconds (30), from its config alone.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    return window_num_samples(read_encoder_config(model_id)) / SAMPLE_RATE


def window_num_samples(config: PreTrainedConfig) -> int:
    """Computes the longest audio that a Whisper encoder takes, in samples at 16 kHz: 480,000 for 30 s."""
    return config.max_source_positions * SAMPLES_PER_ENCODER_FRAME


def require_encoder(model_id: str) -> None:
    """Raises ConfigError unless there is a Whisper checkpoint of that id; in a folder, one with all its files, whole."""
    load_feature_extractor(model_id)
    require_weights(model_id)


def load_encoder(model_id: str, dtype: torch.dtype, attn_implementation: str) -> nn.Module:
    """Loads the encoder out of a whole Whisper checkpoint.

    Raises:
        ConfigError: there is none, or it lacks encoder weights, or has them in other shapes than its config.json says.
    """
    read_encoder_config(model_id)
    return load_module(whisper_encoder_class(), model_id, dtype, attn_implementation, key_mapping={r"^(model\.)?encoder\.": ""})
