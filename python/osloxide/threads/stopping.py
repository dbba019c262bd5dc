"""Where those who end threads meet those who serve waits that can be ended.

Owns one hook. A native thread cannot be ended from outside; one that waits in something of this
package can, and what serves such waits (osloxide.green) says here how. Knows neither the waits nor
who asks. Rules: docs/eventlet.md, "Thread groups".
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from osloxide.threads import identity

Ender = Callable[[threading.Thread, Callable[[], object]], bool]
"""Ends a thread where it waits. True: it is going to end, or the function is called that says that
it comes to no wait."""

_ender: Ender | None = None
_kill: type[BaseException] | None = None
_asked: identity.WeakIdentitySet[threading.Thread] = identity.WeakIdentitySet()


def serve(ender: Ender, kill: type[BaseException]) -> None:
    """Threads that wait in what the caller serves are ended by *ender* from now on.

    :param kill: what it raises in them.
    """
    global _ender, _kill
    _ender, _kill = ender, kill


def end(thread: threading.Thread, on_unheard: Callable[[], object]) -> bool:
    """Let *thread* end where it waits, or at its next wait that can be ended.

    :param on_unheard: called, on any thread, when it comes to no such wait for a while. It must
        not wait.
    :returns: False when it has never waited in such a way; then nothing is to be awaited.
    """
    _asked.add(thread)
    return _ender is not None and _ender(thread, on_unheard)


def is_kill(exc: BaseException) -> bool:
    """Whether *exc* is greenlet's GreenletExit, whoever serves it; greenlet is never imported."""
    greenlet = sys.modules.get("greenlet")
    is_real = greenlet is not None and isinstance(exc, greenlet.GreenletExit)
    return is_real or (_kill is not None and isinstance(exc, _kill))


def is_asked(thread: threading.Thread) -> bool:
    """Whether *thread* was to end."""
    return thread in _asked
