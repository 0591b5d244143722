"""What the service has to offer: its model, under each of its names, and the languages that the model hears."""

from __future__ import annotations

from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.errors import APIError


def require_model_name(args: Arguments, name: str, param: str = "model") -> None:
    """Raises a 404 unless the model has this name."""
    if name not in (args.model_name, *args.model_aliases):
        raise APIError(404, f"no model {name!r} here; there is {args.model_name!r}", "model_not_found", param)


def named_language(args: Arguments, asked: str | None, param: str = "language") -> str:
    """Returns the name of the language that is asked for by its code or name, or of the model's first.

    Raises:
        APIError: the model does not hear it.
    """
    known = args.languages
    language = (asked or next(iter(known))).lower()
    if language not in {*known, *known.values()}:
        raise APIError(400, f"{param}: this model hears {', '.join(known)}, not {asked!r}", "invalid_value", param)
    return known.get(language, language)
