"""What the service has to offer: its models, under each of their names, and the languages that they hear; and what it has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import AfterValidator

from tiny_audio.serving.errors import APIError


def _is_empty(value: Any) -> Any:
    if value:
        raise ValueError("this model was trained without it, so it would change nothing; leave it out")
    return value


NothingTold = AfterValidator(_is_empty)  # for fields that tell a model what to listen for


@dataclass(frozen=True)
class Offer:
    """Checks what clients ask for. `languages` are names by their codes."""

    first_names: list[str]  # of the first model: its own, then its aliases
    further_names: list[str]  # of the others, `Arguments.models`
    languages: dict[str, str]

    @property
    def model_names(self) -> list[str]:
        """All names of all models, the first model's own before all others."""
        return [*self.first_names, *self.further_names]

    def require_model(self, name: str, param: str = "model") -> None:
        """Raises a 404 unless a model has this name."""
        if name not in self.model_names:
            there = ", ".join([self.first_names[0], *self.further_names])
            raise APIError(404, f"no model {name!r} here; there is {there}", "model_not_found", param)

    def further_model(self, name: str | None) -> str | None:
        """Returns the name if it is one of the further models, and None for the first model, as replicas know them."""
        return name if name in self.further_names else None

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
