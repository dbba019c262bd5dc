"""Process 1 before a launcher has its handlers: a stop ends it, as it ends any other process.

For process 1, the first of a container, the kernel drops each signal that has no handler. A service
imports for seconds before a launcher installs its own, and a stop in that time would be lost: the
container could only be killed, after its whole grace period. Owns a handler of SIGTERM until then,
and its end in children that are forked. Handles no other signal, and none in any other process.

Rules: pid_namespaces(7), "The namespace init process"; exit statuses of POSIX sh for a signal.
"""

from __future__ import annotations

import os


def obey_sigterm() -> None:
    """Have SIGTERM end process 1 with status 143 until another handler replaces it (main thread).

    Does nothing in another process, and where the signal has a handler or is ignored.
    """
    if os.getpid() != 1:
        return
    # Not at module level: every interpreter below ``osloxide run`` would pay for it.
    import signal

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
        os.register_at_fork(
            before=_hold, after_in_parent=_give_mask_back, after_in_child=_forget_in_child
        )


def hold_sigterm() -> None:
    """Have a SIGTERM wait for the program that process 1 is about to execute.

    The kernel keeps a signal that is blocked, and drops one that has no handler. That program calls
    :func:`release_sigterm` when it has one.
    """
    if os.getpid() == 1:
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def release_sigterm() -> None:
    """Let in what :func:`hold_sigterm` of the program before has kept."""
    if os.getpid() == 1:
        import signal

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end(signo: int, _frame: object) -> None:
    """What the default does elsewhere."""
    if os.getpid() == 1:
        os._exit(128 + signo)
    _forget()  # a child had it from a launcher, which has given the signal back
    os.kill(os.getpid(), signo)


_masks: dict[int, set[int]] = {}
"""Signal mask of each thread that forks."""


def _hold() -> None:
    """Before a fork: CPython forgets a signal that reaches the child before its hooks have run."""
    import signal
    import threading

    if signal.getsignal(signal.SIGTERM) is _end:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        _masks[threading.get_ident()] = mask


def _give_mask_back() -> None:
    import signal
    import threading

    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _forget_in_child() -> None:
    _forget()
    _give_mask_back()


def _forget() -> None:
    """In a child, for which the kernel's default works."""
    import signal

    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
