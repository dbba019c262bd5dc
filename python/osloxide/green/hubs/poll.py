"""A name of eventlet's for its hub; the one hub of :mod:`osloxide.green.hubs` serves it."""

from osloxide.green.hubs.hub import BaseHub

__all__ = ["Hub", "is_available"]


class Hub(BaseHub):
    """As every hub here."""


def is_available() -> bool:
    """Whether it can be used."""
    return True
