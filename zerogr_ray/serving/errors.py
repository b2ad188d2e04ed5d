"""Why a request was not answered. Each becomes one HTTP status; the message is for the caller and names no path."""

from __future__ import annotations

from zerogr_ray.errors import InputError, ZeroGRError


class Overloaded(ZeroGRError):
    """The queue is full, or a key asks too often."""

    def __init__(self, message: str, retry_after: float) -> None:
        """`retry_after` is in seconds."""
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(ZeroGRError):
    """The service cannot answer now; the same request may be answered later."""


class NotFound(InputError):
    """There is no such index or document."""


class TooLarge(InputError):
    """The request is larger than this service takes on."""


class Denied(ZeroGRError):
    """No key, an unknown one, or one without the right."""

    def __init__(self, message: str, known: bool) -> None:
        super().__init__(message)
        self.known = known
