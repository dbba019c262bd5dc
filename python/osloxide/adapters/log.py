"""oslo.log, kept from giving handlers of logging locks of its own.

Owns what stands in for its workaround of eventlet/eventlet#432. Releases such as 5.1 make it in
``setup()`` in each process that has imported eventlet, patched or not; 5.5.1 does so in patched
ones alone, of which osloxide runs none. Handlers that are made afterwards are locked with a token
in a pipe. All workers inherit that pipe from their parent, so one that is killed in the middle of a
record takes the token with it, and from then on none of them can log. Where nothing is patched,
logging's own locks do, and a child gets new ones.
Rules: oslo_log/log.py (``_fix_eventlet_logging``), oslo_log/pipe_mutex.py; :mod:`logging`.
"""

from __future__ import annotations

from types import ModuleType


def amend(module: ModuleType) -> None:
    """Let ``oslo_log.log`` leave logging's locks alone; a release without the workaround stays."""
    if callable(getattr(module, "_fix_eventlet_logging", None)):
        module._fix_eventlet_logging = _nothing  # type: ignore[attr-defined]


def _nothing() -> None:
    """What ``setup()`` calls instead: nothing is patched in a process that osloxide runs."""
