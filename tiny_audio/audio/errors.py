"""The one error that sound can cause, and the reasons by which it is counted."""

from __future__ import annotations

REASONS = ("empty", "not_audio", "truncated", "damaged", "no_samples", "not_finite", "too_long")


class AudioError(ValueError):
    """Audio that cannot be used. `reason` is one of `REASONS`, to count by; the message says it to a person."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))
