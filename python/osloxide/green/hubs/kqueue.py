"""``eventlet.hubs.kqueue``: of BSD; not available."""

from osloxide.green.hubs.hub import BaseHub

__all__ = ["Hub", "is_available"]


class Hub(BaseHub):
    """Refused by ``use_hub()``."""


def is_available() -> bool:
    """False: Linux has none."""
    return False
