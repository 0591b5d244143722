"""What the service has to offer: its model, under each of its names, and the languages that the model hears."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.serving.errors import APIError


@dataclass(frozen=True)
class Offer:
    """Checks what clients ask for. The first of `model_names` is the model's own, and `languages` are names by their codes."""

    model_names: list[str]
    languages: dict[str, str]

    def require_model(self, name: str, param: str = "model") -> None:
        """Raises a 404 unless the model has this name."""
        if name not in self.model_names:
            raise APIError(404, f"no model {name!r} here; there is {self.model_names[0]!r}", "model_not_found", param)

    def language(self, asked: str | None, param: str = "language") -> str:
        """Returns the name of the language that is asked for by its code or name, or of the model's first.

        Raises:
            APIError: the model does not hear it.
        """
        known = self.languages
        language = (asked or next(iter(known))).lower()
        if language not in {*known, *known.values()}:
            raise APIError(400, f"{param}: this model hears {', '.join(known)}, not {asked!r}", "invalid_value", param)
        return known.get(language, language)
