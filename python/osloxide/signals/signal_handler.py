"""Signal handlers in Python: who is called when a signal arrives, in which order.

Owns the dispositions that launchers and applications ask for; never decides what a signal means
(launchers do) and never blocks inside a handler. A disposition goes straight from one handler to
the next: there is no moment at which SIGTERM or SIGHUP would fall back to killing the process.

Rules: oslo_service.service.SignalHandler, SignalExit, Singleton and _is_daemon (oslo.service 4.8);
handlers run last in, first out since oslo.service 3.5.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FrameType
from typing import Any, ClassVar

from osloxide import _native
from osloxide._typing import override
from osloxide.signals import careful_log, shutdown
from osloxide.signals.signal_names import signal_name
from osloxide.threads import at_end

LOG = careful_log.logger(__name__)

Handler = Callable[[int, FrameType | None], Any]

OF_LAUNCHERS = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM})
"""Signals that every launcher has a handler for; osloxide.signals.policy says what they mean."""


class SignalExit(SystemExit):
    """Ends a program because of a signal.

    :param signo: the signal's number.
    :param exccode: exit status of the process.
    """

    def __init__(self, signo: int, exccode: int = 1) -> None:
        super().__init__(exccode)
        self.signo = signo


class Singleton(type):
    """Metaclass of classes with one instance in each process.

    The lock is taken only while an instance is being made, so that ``SignalHandler()`` may be
    called inside a signal handler.
    """

    _instances: ClassVar[dict[type, Any]] = {}
    _semaphores: ClassVar[threading.RLock] = threading.RLock()

    @override
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return cls._instances[cls]
        except KeyError:
            pass
        with cls._semaphores:
            if cls not in cls._instances:
                cls._instances[cls] = super().__call__(*args, **kwargs)
            return cls._instances[cls]


class SignalHandler(metaclass=Singleton):
    """Calls any number of handlers for each signal, the one that was added last first.

    Handlers run on the main thread between two instructions, as Python's own do: they should only
    record that something is to be done. An exception in one of them is logged and does not keep
    the others from running.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._signals_by_name: dict[str, signal.Signals] = {
            name: number
            for name, number in vars(signal).items()
            if name.startswith("SIG") and isinstance(number, signal.Signals)
        }
        self.signals_to_name: dict[int, str] = {
            number: name for name, number in self._signals_by_name.items()
        }
        self._signal_handlers: collections.defaultdict[int, list[Handler]] = (
            collections.defaultdict(list)
        )
        self._previous: dict[int, Any] = {}

    def is_signal_supported(self, sig_name: str) -> bool:
        """Tell whether the platform has a signal of that name."""
        return sig_name in self._signals_by_name

    def add_handlers(self, signals: Iterable[str], handler: Handler) -> None:
        """Call *handler* for each of the named signals; see :meth:`add_handler`."""
        for sig in signals:
            self.add_handler(sig, handler)

    def add_handler(self, sig: str, handler: Handler) -> None:
        """Call *handler* first whenever the signal arrives.

        :param sig: a name such as ``"SIGTERM"``; one that the platform lacks is ignored.
        :param handler: called as ``handler(signo, frame)``.
        :raises ValueError: called outside the main thread for a signal that has no handler yet.
        """
        if not self.is_signal_supported(sig):
            return
        signo = self._signals_by_name[sig]
        handlers = self._signal_handlers[signo]
        handlers.append(handler)
        try:
            self._take_over(signo)
        except BaseException:
            handlers.remove(handler)
            raise

    def add_last(self, handlers: Mapping[str, Handler]) -> None:
        """Add handlers that run after all others, unless they are there already.

        Launchers use it: what the application installed runs first and stays.

        :param handlers: signal name to handler; names that the platform lacks are ignored.
        """
        for sig, handler in handlers.items():
            if not self.is_signal_supported(sig):
                continue
            signo = self._signals_by_name[sig]
            present = self._signal_handlers[signo]
            if handler not in present:
                present.insert(0, handler)
                _of_launchers.append(handler)
            self._take_over(signo)

    def replace(self, old: Iterable[Handler], new: Mapping[str, Handler]) -> None:
        """Swap some handlers for others without a moment in which the signal has no handler.

        :param old: handlers to forget, for every signal.
        :param new: as for :meth:`add_last`.
        """
        self.add_last(new)
        keep = list(new.values())
        forget = [handler for handler in old if handler not in keep]
        for signo, handlers in list(self._signal_handlers.items()):
            left = [handler for handler in handlers if handler not in forget]
            if left:
                handlers[:] = left
            else:
                self._give_back(signo)

    def clear(self) -> None:
        """Forget all handlers; the signals get the dispositions that they had before the first."""
        for signo in list(self._signal_handlers):
            self._give_back(signo)
        self._signal_handlers.clear()

    def ignore_handler(self, sig: str) -> None:
        """Forget the handlers of one signal and ignore it from now on."""
        signo = self._signals_by_name[sig]
        signal.signal(signo, signal.SIG_IGN)
        self._signal_handlers.pop(signo, None)
        self._previous.pop(signo, None)

    def _take_over(self, signo: int) -> None:
        current = signal.getsignal(signo)
        if current == self._handle_signal:
            return
        signal.signal(signo, self._handle_signal)
        self._previous[signo] = current

    def _give_back(self, signo: int) -> None:
        # The disposition first: a signal that came with no handler here would be lost.
        previous = self._previous.get(signo)
        if signal.getsignal(signo) == self._handle_signal:
            # None: a handler that was not installed from Python cannot be put back.
            signal.signal(signo, signal.SIG_DFL if previous is None else previous)
            if signo == signal.SIGTERM:
                _native.end_init_at_sigterm()  # process 1 has no default that would end it
        self._signal_handlers.pop(signo, None)
        self._previous.pop(signo, None)

    def _handle_signal(self, signo: int, frame: FrameType | None) -> None:
        self._handle_signal_cb(signo, frame)

    def _handle_signal_cb(self, signo: int, frame: FrameType | None) -> None:
        leaving: BaseException | None = None
        for handler in reversed(self._signal_handlers.get(signo, [])[:]):
            try:
                handler(signo, frame)
            except Exception:
                LOG.exception("A handler of %s failed; the others still run", signal_name(signo))
            except BaseException as exc:  # noqa: BLE001  # SystemExit: raised after the others ran
                leaving = leaving or exc
        if leaving is not None:
            raise leaving


def has_raised(exc: BaseException) -> bool:
    """Tell whether a signal handler has raised *exc*, and not the code that it came out of.

    One in Python is among the frames that the exception has left. CPython's own handler of SIGINT
    has no frame: where it is installed, each KeyboardInterrupt counts as its own.
    """
    handlers = [signal.getsignal(signo) for signo in signal.valid_signals()]
    if isinstance(exc, KeyboardInterrupt) and signal.default_int_handler in handlers:
        return True
    codes = {_code_of(handler) for handler in handlers if callable(handler)}
    frames = traceback.walk_tb(exc.__traceback__)
    return any(frame.f_code in codes for frame, _ in frames)


def _code_of(handler: Any) -> CodeType | None:
    """The code that runs first when *handler* is called; None where it is not in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    is_plain = hasattr(handler, "__code__")  # a function, or a method
    code: CodeType | None = getattr(
        handler if is_plain else type(handler).__call__, "__code__", None
    )
    return code


is_forking_worker = False
"""True while a launcher forks: the child is a worker and puts its handlers in order by itself."""

_of_launchers: list[Handler] = []
"""Handlers that launchers have added with :meth:`SignalHandler.add_last`."""


def _forget_launcher() -> None:
    """In a child that the application forked, by multiprocessing for one: signals are its own.

    The handlers of a launcher would swallow SIGTERM there, and the wakeup fd would tell the
    launcher of signals that the child got.
    """
    handler = Singleton._instances.get(SignalHandler)
    if is_forking_worker or handler is None or not _of_launchers:
        return
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
    handler.replace(_of_launchers, {})
    _of_launchers.clear()
    _give_mask_back()


_masks: dict[int, set[int | signal.Signals]] = {}
"""Signal mask of each thread that forks."""


def _hold_signals() -> None:
    """Before a fork: CPython forgets a signal that reaches the child before its hooks have run."""
    if _of_launchers and not is_forking_worker:
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, OF_LAUNCHERS)


def _give_mask_back() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


os.register_at_fork(
    before=_hold_signals, after_in_parent=_give_mask_back, after_in_child=_forget_launcher
)


def _outlast_the_interpreter() -> None:
    """Keep a second SIGTERM from killing a program that has stopped and is about to exit with 0.

    At its very end Python puts the default back for every signal that has a handler, but not for
    one that is ignored.
    """
    handler = Singleton._instances.get(SignalHandler)
    if handler is None or not shutdown.is_stopping():
        return
    for signo in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signo) == handler._handle_signal:
            with contextlib.suppress(ValueError):  # atexit functions may run on any thread
                signal.signal(signo, signal.SIG_IGN)


at_end.call(at_end.Turn.SIGNALS, _outlast_the_interpreter)


def is_daemon() -> bool:
    """Tell whether this process runs without a terminal in the foreground.

    :returns: True when stdout is missing, closed, no terminal, or the terminal of another process
        group; False when a user sits in front of it.
    """
    try:
        return os.getpgrp() != os.tcgetpgrp(sys.stdout.fileno())
    except (AttributeError, ValueError):
        return True  # stdout is None, closed, or (io.UnsupportedOperation) has no descriptor
    except OSError as err:
        return err.errno in (errno.ENOTTY, errno.EBADF)


def is_sighup_and_daemon(signo: int, signal_handler: SignalHandler) -> bool:
    """Tell whether a signal asks a daemon to reload; see :func:`is_daemon`."""
    return signal_handler.is_signal_supported("SIGHUP") and signo == signal.SIGHUP and is_daemon()
