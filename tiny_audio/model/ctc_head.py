"""A small head that hears letters in the frozen encoder's frames: one linear layer, trained by CTC (Graves et al. 2006).

It has no part in the decoder's text. When words were said is read off its letters, and they are a second opinion of a text
or a label (`inference/hearing.py`). It belongs to the encoder: any projector and decoder behind that may have it.
Letters in shapes are those of `features.py`.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.utils import skip_init
from transformers.utils import cached_file

from tiny_audio.config import embedded_backbone, require

CTC_HEAD_FILE = "ctc_head.safetensors"
BLANK, SPACE = 0, 1  # the first two classes: nothing new is heard; a word has ended
ALPHABET = " abcdefghijklmnopqrstuvwxyz'"  # the classes behind the blank
NUM_CLASSES = 1 + len(ALPHABET)


def spoken(text: str) -> str:
    """Folds a text to words that the alphabet spells: lower case, no accents, no punctuation. Other scripts and digits go."""
    return " ".join(filter(None, map(_folded, text.split())))


def _folded(word: str) -> str:
    letters = unicodedata.normalize("NFKD", word.casefold().replace("\u2019", "'"))  # é becomes e and an accent
    return "".join(letter for letter in letters if letter in ALPHABET).strip("'")


def spelled(text: str) -> list[int]:
    """Returns the classes of a text that `spoken` has folded."""
    return [1 + ALPHABET.index(letter) for letter in text]


def letter_log_probs(head: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """Computes how likely each class is in each encoder frame, (..., C) -> (..., NUM_CLASSES) natural logarithms in float32."""
    return head(frames.float()).log_softmax(dim=-1)


def heard_text(log_probs: torch.Tensor) -> str:
    """Reads the likeliest letters of a clip, (E, NUM_CLASSES), without the blanks and repetitions; "" where nothing was said."""
    best = torch.unique_consecutive(log_probs.argmax(dim=-1))
    return " ".join("".join(ALPHABET[number - 1] for number in best.tolist() if number != BLANK).split())


def new_ctc_head(width: int) -> nn.Linear:
    """Makes a head for an encoder of this width, C, with random weights."""
    return nn.Linear(width, NUM_CLASSES)


def save_ctc_head(head: nn.Linear, folder: str | Path) -> None:
    """Writes a head into the folder of a saved model, or of an encoder."""
    weights = {name: weight.detach().float().cpu().contiguous() for name, weight in head.state_dict().items()}
    (Path(folder) / CTC_HEAD_FILE).write_bytes(save(weights, metadata={"format": "pt"}))


def load_ctc_head(model: str, width: int, **hub_options) -> nn.Linear | None:
    """Loads the head of a saved model, in a folder or at a hub id; returns None if it has none.

    Args:
        model: the folder or hub id.
        width: the encoder's, C.
        **hub_options: of HUB_OPTIONS.

    Raises:
        ConfigError: the file holds no head of this code's alphabet for such an encoder.
    """
    try:
        file = cached_file(model, CTC_HEAD_FILE, **hub_options)
    except OSError:  # transformers' error for a file that is not there
        return None
    weights, head = load_file(file), skip_init(nn.Linear, width, NUM_CLASSES)  # draws no random number
    shapes = [{name: weight.shape for name, weight in state.items()} for state in (weights, head.state_dict())]
    require(shapes[0] == shapes[1], f"{model}: {CTC_HEAD_FILE} is no head for an encoder of width {width}; train it again")
    head.load_state_dict(weights)
    return head.requires_grad_(False).eval()


def load_encoders_ctc_head(model_id: str, width: int) -> nn.Linear | None:
    """Loads the head that lies beside an encoder's weights, as that of the embedded one does; None if there is none."""
    folder = Path(embedded_backbone(model_id) or model_id)
    return load_ctc_head(str(folder), width) if (folder / CTC_HEAD_FILE).is_file() else None
