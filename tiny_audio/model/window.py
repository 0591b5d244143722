"""Reads the longest audio that a saved model takes, without loading it."""

from __future__ import annotations

from tiny_audio.config import ConfigError, one_line
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.encoder import read_window_s
from tiny_audio.model.saved import require_readable
from tiny_audio.storage import local_folder


def read_model_window_s(model: str) -> float:
    """Reads the longest audio that a saved model takes, in seconds, from the configs alone.

    Raises:
        ConfigError: there is no such model, it is of another version than this code reads, or its encoder is gone.
    """
    try:
        with local_folder(model) as folder:
            config = ASRConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model}: {one_line(error)}") from None
    require_readable(model, config)
    return read_window_s(config.audio_model_id)
