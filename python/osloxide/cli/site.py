"""The service of ``osloxide serve``: loads the application in a worker and serves it.

Owns what happens when an application cannot be loaded: whatever it does instead (an exception,
``sys.exit()``), the first process that fails says so once, and where none of the first processes is
able to load it, everything ends. Binds nothing and reads no option.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import logging
import mmap
import os
import signal
import sys
import termios
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from osloxide.causes import chain
from osloxide.cli import slow_import
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    from osloxide.cli.application import Application
    from osloxide.cli.reloading import Reloader
    from osloxide.wsgi import Server

BOOT_FAILED = 3
"""Exit status when the application cannot be loaded, as for gunicorn. In a reload the supervisor
then leaves the old worker where it is (docs/lifecycle.md, "A slot")."""
_HAS_NO_PLACE = 1
"""That of one that may find it taken by the old worker, which then leaves first."""
_TAKEN = {errno.EADDRINUSE, errno.EAGAIN}
"""What the kernel says of a port, or a lock, that another process has."""

_LOADED, _GAVE_UP, _STOPS = 0, 1, 2
_LEAVING = 10.0
"""Seconds that a worker that stops goes on accepting for others that still load the application."""

_OTHERS = 60.0
"""Seconds that a worker that cannot load the application waits for one that can."""

LOG = logging.getLogger("osloxide.serve")


class Boot:
    """What all processes of one command know about loading; made before the fork."""

    def __init__(self) -> None:
        # One flag each, shared with all workers.
        self._outcome = mmap.mmap(-1, 3)
        # One byte, which one process gets: the one that reports.
        self._token, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.write(write_end, b"\0")
        os.close(write_end)
        # One byte for each process that could not load it.
        self._failures, self._failure = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def succeeded(self) -> None:
        """An application was loaded: later failures are a respawn's."""
        self._outcome[_LOADED] = 1

    def has_succeeded(self) -> bool:
        """Whether any process has ever loaded the application."""
        return self._outcome[_LOADED] == 1

    def failed(self) -> bool:
        """Record that this process cannot load it; True for the first that says so."""
        with contextlib.suppress(OSError):
            os.write(self._failure, b"\0")
        with contextlib.suppress(OSError):
            return bool(os.read(self._token, 1))
        return False

    def give_up(self) -> None:
        """Record that everything ends because no process can load it."""
        self._outcome[_GAVE_UP] = 1

    def wait_for_others(self) -> bool:
        """Let workers that were started together with this one load the application.

        What one of them cannot load, such as a database that another one has locked to fill it, is
        no reason to end the others.

        :returns: whether one could; False when all have failed, or when it takes too long.
        """
        from osloxide import _native

        begin = time.monotonic()
        board = _native.Scoreboard.attach(os.getpid())
        while not self.has_succeeded():
            loading = sum(bool(row["pid"]) and row["ready_at"] is None for row in board.read())
            waiting = fcntl.ioctl(self._failures, termios.FIONREAD, bytes(4))
            failed = int.from_bytes(waiting, sys.byteorder)
            if failed >= loading or self.has_given_up() or time.monotonic() - begin > _OTHERS:
                return False
            time.sleep(0.02)
        return True

    def stops(self) -> None:
        """Record, in the parent, that every worker is told to stop."""
        self._outcome[_STOPS] = 1

    def has_stopped(self) -> bool:
        """Whether every worker is told to stop, and not one alone that is replaced."""
        return self._outcome[_STOPS] == 1

    def wait_for_loaders(self) -> None:
        """Let workers leave that load the application, before this one stops accepting.

        Each has a copy of the listening socket and will never accept from it. One that holds the
        interpreter in an import leaves late; what the kernel took for the last copy is reset then.
        Who asks is none of them, and neither is one that has left: its row stays until it is used
        again.
        """
        # Not at module level: osloxide.cli is imported where the native module need not be.
        from osloxide import _native

        begin = time.monotonic()
        board = _native.Scoreboard.attach(os.getpid())
        while any(
            row["ready_at"] is None and row["pid"] != os.getpid() and _is_there(row["pid"])
            for row in board.read()
        ):
            if time.monotonic() - begin > _LEAVING:
                return
            time.sleep(0.005)

    def has_given_up(self) -> bool:
        """Whether everything was ended because the application could not be loaded."""
        return self._outcome[_GAVE_UP] == 1


def _is_there(pid: int) -> bool:
    """Whether there is such a process; 0 is none."""
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def report(application: Application, error: BaseException) -> str:
    """Why *application* could not be loaded: a line, or a line and a traceback."""
    if isinstance(error, CommandError):
        return str(error)
    if not isinstance(error, SystemExit):
        trace = "".join(traceback.format_exception(error)).rstrip()
        return f"cannot load {application.text}: {in_one_line(error)}\n{trace}"
    place = traceback.extract_tb(error.__traceback__)
    where = f" at {place[-1].filename}:{place[-1].lineno}" if place else ""
    return (
        f"cannot load {application.text}: it ended itself with sys.exit({error.code!r}){where}; "
        f"its arguments are {sys.argv[1:]}, give others behind -- or in --pyargv"
    )


def in_one_line(error: BaseException) -> str:
    """An error without its line breaks, for a report."""
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
    elif isinstance(error, SystemExit):
        text = f"sys.exit({error.code!r})"
    return " ".join(text.split()) or type(error).__name__


def _keep_out_of_collections() -> None:
    """Have collections of garbage pass over what loading has made.

    An application of OpenStack makes some hundred thousand objects at its import, and keeps them. A
    full collection looks at each, for a tenth of a second in which no request goes on, and finds
    nothing.
    """
    from osloxide.launch import orphans

    if gc.isenabled():
        gc.collect()  # what is garbage now would stay for ever
        orphans.freeze()


def is_taken(error: BaseException | None) -> bool:
    """Whether *error*, or one that it came of, says that another process has what was asked for."""
    return any(isinstance(one, OSError) and one.errno in _TAKEN for one in chain(error))


def site_service(
    site: Application,
    name: str,
    servers: Sequence[Server],
    boot: Boot,
    *,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda application: application,
    on_start: Callable[[], object] = lambda: None,
    on_reset: Callable[[], object] = lambda: None,
    on_interrupted: Callable[[], object] = lambda: None,
    on_stopped: Callable[[], object] = lambda: None,
    reloader: Reloader | None = None,
) -> Any:
    """The service that loads *site* and serves it on all *servers*.

    :param name: what logs, status and metrics call it.
    :param wrap: what stands between the servers and the application.
    :param on_start: called in a process that is to serve, before the application is loaded.
    :param on_reset: called in the parent, or the process that serves alone, on SIGHUP.
    :param on_interrupted: called in a process that leaves while it loads the application.
    :param on_stopped: called in a process that served, when the last request was answered.
    :param reloader: watches what was loaded.
    """
    # Not at module level: osloxide.cli is imported before oslo.service may be.
    from osloxide.launch import inheritance
    from osloxide.launch.ending import leave
    from osloxide.service import ServiceBase
    from osloxide.signals import shutdown

    shutdown.when_listeners_close(boot.stops)

    class SiteService(ServiceBase):  # type: ignore[misc, unused-ignore]
        """One application on several listening sockets."""

        osloxide_name = name

        def __init__(self) -> None:
            self._supervisor = os.getpid()
            self._is_loading = False

        def prepare(self) -> None:
            """Load the application in a template, which must have nothing that workers would share.

            :raises SystemExit: it could not be loaded, which has been reported.
            """
            before = inheritance.descriptors()
            try:
                site.load()
                if shared := inheritance.unfit(before):
                    raise CommandError(
                        f"--warm cannot fork workers from what loading {site.text} has left open: "
                        f"{'; '.join(shared)}; open it in the first request, close it at the end "
                        "of the import, or leave --warm out"
                    )
            except BaseException as error:
                self._boot_failed(error, has_others=False)
                raise SystemExit(BOOT_FAILED) from error
            boot.succeeded()

        def start(self) -> None:
            self._is_loading = True
            try:
                on_start()
                with slow_import.watched(site.text):
                    application = wrap(site.load())
            except BaseException as error:
                # Before the report: another worker's failure may have ended everything by now.
                self._is_loading = False
                self._boot_failed(error)
                taken = boot.has_succeeded() and is_taken(error)
                raise SystemExit(_HAS_NO_PLACE if taken else BOOT_FAILED) from error
            finally:
                self._is_loading = False
            boot.succeeded()
            _keep_out_of_collections()
            for server in servers:
                server.app = application
                server.start()
            if reloader is not None:
                reloader.watch()

        def interrupt_start(self) -> None:
            """Leave at once when told to stop while the application is being loaded.

            It serves nobody yet, and its listener would take connections that wait for the end of
            an import that may take minutes.
            """
            if self._is_loading:
                LOG.info("told to stop while %s is being loaded; leaving at once", site.text)
                on_interrupted()
                leave(0)

        def stop(self, *_args: object) -> None:
            if os.getpid() != self._supervisor and boot.has_stopped():
                with contextlib.suppress(OSError, ValueError):
                    boot.wait_for_loaders()
            for server in servers:
                server.stop()

        def wait(self) -> None:
            for server in servers:
                server.wait()
            if shutdown.is_stopping():
                on_stopped()

        def reset(self) -> None:
            if os.getpid() == self._supervisor:
                on_reset()
            for server in servers:
                server.reset()

        def _boot_failed(self, error: BaseException, *, has_others: bool = True) -> None:
            """End everything when no worker has ever been able to load the application.

            It would fail again and again. Workers that still load it are waited for. Once it has
            been loaded, a failure is a respawn's: the supervisor retries with back-off while the
            other workers serve.
            """
            if boot.has_succeeded():
                LOG.error("%s", report(site, error))
                return
            if boot.failed():
                LOG.error("%s", report(site, error))
            if os.getpid() == self._supervisor:
                boot.give_up()
                return
            self._is_loading = True  # it may be told to stop, and serves nobody
            with contextlib.suppress(OSError, ValueError):
                if has_others and boot.wait_for_others():
                    return
            self._is_loading = False
            boot.give_up()
            os.kill(os.getppid(), signal.SIGTERM)

    return SiteService()
