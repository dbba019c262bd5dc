"""What ``threading.current_thread()`` is in a greenthread.

Owns the names that eventlet gives that object beside those of ``threading.Thread``; programs that
were written for a patched ``threading`` call them. Starts nothing.
Rules: eventlet.green.threading, ``current_thread()``.
"""

from __future__ import annotations

from osloxide.threads.pool_thread import PoolThread


class _GreenThread(PoolThread):
    """The thread of one greenthread, from its beginning to its end."""

    def get_name(self) -> str:
        """What it is called."""
        return self.name

    def set_name(self, name: object) -> None:
        """Call it *name*."""
        self.name = str(name)

    def is_daemon(self) -> bool:
        """True: the program ends without waiting for it."""
        return self.daemon

    def isAlive(self) -> bool:  # noqa: N802 - eventlet's name
        """The old name of ``is_alive()``."""
        return self.is_alive()


GreenThreadHandle = _GreenThread
"""Its name is what programs see in its ``repr()``: eventlet's."""
