"""The module ``uwsgi`` that applications import to learn about their server.

Owns what it holds and that all of it is true. It exists only where ``osloxide uwsgi`` or
``serve --uwsgi-module`` asks for it: an application that finds it takes other ways, and would fail
where half of it is missing. What is not offered raises AttributeError with the name, as a build of
uWSGI without a plugin does.

Rules: uWSGI 2.0's "Python module" page; values are bytes where uWSGI's are.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

from osloxide._typing import override
from osloxide.cli import filters
from osloxide.cli.uwsgi.reader import VERSION

LOG = logging.getLogger("osloxide.serve")

NAME = "uwsgi"
_PIECE = 32768


def offer(
    options: Sequence[tuple[str, str]],
    *,
    workers: int,
    threads: int,
    has_parent: bool,
) -> types.ModuleType:
    """Make the module importable in this process and its workers.

    :param options: name and value of each option, in their order.
    :param workers: number of workers.
    :param threads: most requests at once in a worker.
    :param has_parent: whether workers have a parent, which ``masterpid()`` names.
    """
    from osloxide.launch import worker

    parent = os.getpid()
    module = _Module(NAME, __doc__)

    def worker_id() -> int:
        """1 to numproc; 0 in the parent."""
        if worker.slot is not None:
            return worker.slot + 1
        return 0 if has_parent else 1

    def masterpid() -> int:
        """The parent's pid; 0 where there is none."""
        return parent if has_parent else 0

    def log(message: Any) -> bool:
        """Write a line to the log."""
        text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
        LOG.info("%s", text)
        return True

    def reload() -> bool:
        """Ask for a reload of the whole service."""
        os.kill(parent, signal.SIGHUP)
        return True

    def stop() -> bool:
        """Ask for the end of the whole service."""
        os.kill(parent, signal.SIGTERM)
        return True

    major, minor, patch = (int(number) for number in VERSION.split("."))
    module.__dict__.update(
        numproc=workers,
        cores=threads,
        has_threads=1,
        opt=_options(options),
        version=VERSION.encode(),
        version_info=(major, minor, patch, 0, b""),
        hostname=socket.gethostname().encode(),
        buffer_size=65536,
        started_on=int(time.time()),
        loop=None,
        unbit=None,
        applications=None,
        worker_id=worker_id,
        masterpid=masterpid,
        mule_id=lambda: 0,
        chunked_read=chunked_read,
        chunked_read_nb=chunked_read,
        log=log,
        set_logvar=set_logvar,
        get_logvar=get_logvar,
        reload=reload,
        stop=stop,
        i_am_the_spooler=lambda: False,
        in_farm=lambda *_: False,
        is_a_reload=lambda: False,
        micros=lambda: time.time_ns() // 1000,
        setprocname=lambda *_: None,
    )
    sys.modules[NAME] = module
    return module


def run_atexit() -> None:
    """Call ``uwsgi.atexit``, where the application has set it."""
    function: Callable[[], object] | None = getattr(sys.modules.get(NAME), "atexit", None)
    if not callable(function):
        return
    try:
        function()
    except Exception:
        LOG.exception("uwsgi.atexit failed")


def chunked_read(_timeout: int = 0) -> bytes:
    """The next piece of the body of the request that this thread handles; blank at its end.

    :raises OSError: this thread handles no request, or its client is gone.
    """
    stream = filters.current_input()
    if stream is None:
        raise OSError("uwsgi.chunked_read() was called outside of a request")
    piece: bytes = stream.read(_PIECE)
    return piece


def set_logvar(name: str, value: str | bytes) -> None:
    """Note *value* about the request that this thread handles; :func:`get_logvar` gives it back."""
    filters.current_notes()[name] = value.encode() if isinstance(value, str) else bytes(value)


def get_logvar(name: str) -> bytes | None:
    """What was noted under *name* about the request that this thread handles; None for nothing."""
    return filters.current_notes().get(name)


class _Module(types.ModuleType):
    """Names what is not there."""

    @override
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"module 'uwsgi' of osloxide has no attribute {name!r}; docs/uwsgi.md lists what it has"
        )


def _options(options: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """``uwsgi.opt``: of an option that was given more than once, the last value."""
    return {name: os.fsencode(value) for name, value in options}
