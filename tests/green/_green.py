"""pytest plugin of the run of eventlet's own tests: the names must be osloxide's.

Owns that check alone: a run on the real eventlet would prove nothing.
"""

from __future__ import annotations


def pytest_configure() -> None:
    import eventlet
    import greenlet

    for module in (eventlet, greenlet):
        if not module.__name__.startswith("osloxide.green"):
            raise SystemExit(f"{module.__name__} is not served by osloxide: {module.__file__}")
