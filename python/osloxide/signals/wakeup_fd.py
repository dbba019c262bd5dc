"""The wakeup fd of CPython, which has one place and two who need it.

The control thread hears of every signal through it. An application may need it as well: asyncio's
``loop.add_signal_handler()`` takes it, and at its end leaves none. Owns ``signal.set_wakeup_fd()``
for as long as a control thread runs: what an application gives there gets a copy of each number,
and the control thread keeps hearing. Reads nothing and handles no signal.

Rules: signal.set_wakeup_fd (Python library reference).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

_set = signal.set_wakeup_fd
"""The original: this module is imported before any object of it may take its place."""

NONE = -1
"""What ``set_wakeup_fd()`` says for no descriptor."""


class SharedWakeupFd:
    """The place of the wakeup fd, from :meth:`take` to :meth:`give_back` (main thread only).

    :param write_end: the non-blocking descriptor that CPython is to write to.
    """

    def __init__(self, write_end: int) -> None:
        self._write_end = write_end
        self._pid = os.getpid()
        self._other = NONE
        self._file: tuple[int, int] | None = None
        self._is_taken = False
        self._displaced: Any = None

    def take(self) -> None:
        """Have CPython write here, and remember to whom it wrote before."""
        self._remember(_set(self._write_end, warn_on_full_buffer=False))
        self._is_taken = True
        self._displaced = signal.set_wakeup_fd
        signal.set_wakeup_fd = self._set_by_application

    def give_back(self) -> None:
        """Have CPython write to what the application gave last."""
        self._is_taken = False
        if signal.set_wakeup_fd == self._set_by_application:
            signal.set_wakeup_fd = self._displaced
        heir = self._other if self._is_open() else NONE
        try:
            _set(heir)
        except ValueError:
            _set(NONE)  # it blocks, or was closed just now

    def pass_on(self, numbers: bytes) -> None:
        """Write *numbers* of signals to the descriptor of the application, if there is one."""
        if self._is_open():
            with contextlib.suppress(OSError):  # as CPython does: one that is full loses them
                os.write(self._other, numbers)

    def _set_by_application(self, fd: int, /, *, warn_on_full_buffer: bool = True) -> int:
        """``signal.set_wakeup_fd()``; see there."""
        if not self._is_taken or os.getpid() != self._pid:
            return int(_set(fd, warn_on_full_buffer=warn_on_full_buffer))
        # The original judges the descriptor and the calling thread, and raises as it does.
        _set(fd, warn_on_full_buffer=warn_on_full_buffer)
        _set(self._write_end, warn_on_full_buffer=False)
        before = self._other if self._is_open() else NONE
        self._remember(fd)
        return before

    def _remember(self, fd: int) -> None:
        self._other, self._file = fd, _file_of(fd)

    def _is_open(self) -> bool:
        """Whether the number still stands for the file that it stood for: it may have been closed
        without a word, and given to another."""
        return self._file is not None and _file_of(self._other) == self._file


def _file_of(fd: int) -> tuple[int, int] | None:
    if fd == NONE:
        return None
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
