"""Process 1 before a launcher has its handlers: a stop ends it, as it ends any other process.

For process 1, the first of a container, the kernel drops each signal that has no handler. A service
imports for seconds before a launcher installs its own, and a stop in that time would be lost: the
container could only be killed, after its whole grace period. Asks the native core for a handler of
SIGTERM until then, which needs no interpreter: an import may compute in C for long. Handles no
other signal, and none in any other process.

Rules: pid_namespaces(7), "The namespace init process"; exit statuses of POSIX sh for a signal.
"""

from __future__ import annotations

import os


def obey_sigterm() -> None:
    """Have SIGTERM end process 1 with status 143 until another handler replaces it.

    Does nothing in another process, and where the signal has a handler or is ignored.
    """
    if os.getpid() != 1:
        return
    # Not at module level: every interpreter below ``osloxide run`` would pay for it.
    from osloxide import _native

    _native.end_init_at_sigterm()


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
