"""Finds the files of the two frozen backbones, and checks what they hold. Weights are read from safetensors alone.

`require_encoder` and `require_decoder` say what a folder lacks before training starts, as far as its small files and the
headers of its weights tell. `backbone_weights.py` says the rest as it loads them, and all about the weights of a hub id.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, BatchFeature, PreTrainedConfig, WhisperFeatureExtractor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from tiny_audio.audio.clip import HOP_SAMPLES, N_FFT, SAMPLE_RATE, SAMPLES_PER_ENCODER_FRAME, require_clips
from tiny_audio.config import ConfigError, embedded_backbone, is_hub_id, one_line, require
from tiny_audio.model.decoders.families import FAMILIES
from tiny_audio.model.prompt import AUDIO_TOKEN, build_prompt

ENCODERS = {"whisper": "Whisper"}
DECODERS = {family.model_type: family.name for family in FAMILIES.values()}
# Where a tokenizer's pieces may be. Without any of them transformers makes some kinds of tokenizers empty, and says nothing.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def backbone_path(model_id: str) -> str:
    """Where a backbone is: the folder of an embedded one; a local folder or a hub id as it is."""
    return str(embedded_backbone(model_id) or model_id)


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


def load_tokenizer(model_id: str):
    """Loads the decoder's tokenizer, with the `<audio>` placeholder known to it as one token.

    Raises:
        ConfigError: it is not there, or lacks a chat template.
    """
    folder = Path(backbone_path(model_id))
    has_tokens = not folder.is_dir() or any((folder / name).is_file() for name in TOKENIZER_FILES)
    require(has_tokens, f"{model_id}: its tokenizer cannot be read; fetch it again ({' or '.join(TOKENIZER_FILES)} is missing)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(model_id))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model_id}: its tokenizer cannot be read; fetch it again ({one_line(error)})") from None
    remedy = "take the instruction-tuned checkpoint, such as HuggingFaceTB/SmolLM3-3B"
    require(bool(tokenizer.chat_template), f"{model_id}: the tokenizer has no chat template (chat_template.jinja); {remedy}")
    tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


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


def require_decoder(model_id: str) -> None:
    """Raises ConfigError unless there is a decoder of that id, of a known family, with a tokenizer and chat template for it.

    In a folder, one with all its files, whole.
    """
    config = read_decoder_config(model_id)
    tokenizer = load_tokenizer(model_id)
    try:
        build_prompt(tokenizer, FAMILIES[config.model_type].system_prompt)
    except (ValueError, TemplateError) as error:
        raise ConfigError(f"{model_id}: its chat template cannot be used: {one_line(error)}") from None
    last = max(number for token, number in tokenizer.get_vocab().items() if token != AUDIO_TOKEN)
    remedy = "take the checkpoint's own tokenizer"
    require(last < config.vocab_size, f"{model_id}: the tokenizer has ids to {last}, the model {config.vocab_size}; {remedy}")
    require_weights(model_id)


def read_encoder_config(model_id: str) -> PreTrainedConfig:
    """Reads the config of a Whisper checkpoint. Else as `_read_config`."""
    return _read_config(model_id, ENCODERS)


def read_decoder_config(model_id: str) -> PreTrainedConfig:
    """Reads the config of a decoder.

    Raises:
        ConfigError: there is none, or it is of no known family, or asks for what `layers.py` does not compute.
    """
    config = _read_config(model_id, DECODERS)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    require(not sliding, f"{model_id}: attends within a sliding window, which is not computed here; take another checkpoint")
    require(config.hidden_act == "silu", f"{model_id}: computes with {config.hidden_act}, and only silu is computed here")
    return config


def _read_config(model_id: str, architectures: dict[str, str]) -> PreTrainedConfig:
    """Reads the config of a checkpoint.

    Args:
        architectures: the names of those that will do, by their `model_type`.

    Raises:
        ConfigError: there is none, or it is of another architecture, or quantised.
    """
    path = backbone_path(model_id)
    if Path(path).is_dir():
        require((Path(path) / "config.json").is_file(), f"{model_id}: the folder has no config.json; is the download complete?")
    else:
        require(is_hub_id(model_id), f"{model_id}: no such folder, and no hub id (OWNER/NAME)")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, StrictDataclassError) as error:
        remedy = "" if Path(path).is_dir() else "not found on the hub, or no way to it; without a network, name a local folder: "
        raise ConfigError(f"{model_id}: {remedy}{one_line(error)}") from None
    *others, last = architectures.values()
    names = f"{', '.join(others)} or {last}" if others else last
    require(config.model_type in architectures, f"{model_id}: is a {config.model_type}, not a {names} checkpoint")
    is_quantised = getattr(config, "quantization_config", None) is not None
    require(not is_quantised, f"{model_id}: its weights are quantised; take the checkpoint that they were made from")
    return config


def require_weights(model_id: str) -> None:
    """Raises ConfigError unless a folder's weight files are there and whole. A hub id's are not looked at."""
    folder = Path(backbone_path(model_id))
    if not folder.is_dir():
        return
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = [folder / SAFE_WEIGHTS_NAME]
    if not files[0].is_file():
        remedy = "fetch it again; other formats are not read"
        require(index.is_file(), f"{folder}: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME} there; {remedy}")
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{index}: not an index of shards ({one_line(error)}); fetch it again") from None
    for path in files:
        require(path.is_file(), f"{path}: {index.name} names this shard, and it is not there; fetch it again")
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ConfigError(f"{path}: not a safetensors file, or a truncated one ({one_line(error)}); fetch it again") from None
