"""Threads that osloxide starts in Python for work of its own: timers, control, helpers.

Owns how such a thread is started and the registry that tells them from threads of the application.
A thread inherits the signal mask of the thread that starts it, and so do the commands that the
application starts there. Nothing here blocks a signal: the kernel prefers the main thread, and
osloxide.signals.control_thread wakes the main thread when another one got the signal.

Rules: threading (Python library reference), signal(7).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from osloxide.threads import identity

_own: identity.WeakIdentitySet[threading.Thread] = identity.WeakIdentitySet()


def start(name: str, target: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread.

    :param name: what it is called in logs and debuggers.
    :raises RuntimeError: the system has no thread to give.
    """
    thread = enter(threading.Thread(target=target, name=name, daemon=True))
    thread.start()
    return thread


def enter(thread: threading.Thread) -> threading.Thread:
    """Enter a thread into the registry that its owner starts in its own way.

    :returns: *thread*, which ``threading`` holds for as long as it lives.
    """
    _own.add(thread)
    return thread


def leave(thread: threading.Thread) -> None:
    """Take a thread out of the registry: it runs code of the application until entered again.

    In between it may hold locks of the application, which a fork has to mind.
    """
    _own.discard(thread)


def of_application() -> list[threading.Thread]:
    """The live threads that the application started, or runs on, without the calling thread."""
    current = threading.current_thread()
    return [
        thread
        for thread in threading.enumerate()
        if thread is not current and thread is not threading.main_thread() and thread not in _own
    ]
