"""Lets each layer of the backbones be called as a module, so that whoever shards its weights can gather them all at once.

`layers.py` computes with a layer's weights and never calls the layer itself. Hooks on its parts would gather them one by one,
in the midst of what is compiled. Here its functions run inside the layer's own call, and hooks on that lie around them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from transformers import PreTrainedModel


def _call(layer: nn.Module, own: Callable, first: object, *args, **kwargs):
    """Computes a function of `layers.py`, if that comes first, else what transformers computes."""
    return first(layer, *args) if callable(first) else own(first, *args, **kwargs)


def _inside(function: Callable) -> Callable:
    return lambda layer, *args: layer(function, *args)


def whole_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Lists the layers of an `ASRModel`'s backbones, and the output head: nearly all of its weights."""
    return [*model.encoder.layers, *model.decoder.model.layers, model.decoder.lm_head]


def call_whole_layers(model: PreTrainedModel) -> None:
    """Makes an `ASRModel` compute each of its `whole_layers` inside that module's call, compiled or not."""
    for layer in whole_layers(model):
        layer.forward = partial(_call, layer, layer.forward)
    names = ("encoder", "decoder", "last_decoder", "losses")
    model.layers = model.layers._replace(**{name: _inside(getattr(model.layers, name)) for name in names})
