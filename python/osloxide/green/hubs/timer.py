"""``eventlet.hubs.timer``: see :mod:`osloxide.green._core.timers`."""

from osloxide.green._core.timers import LocalTimer, Timer

__all__ = ["LocalTimer", "Timer"]
