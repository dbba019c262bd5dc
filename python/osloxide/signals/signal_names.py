"""The names of signals, for people: in logs, in ``osloxide status`` and in the metrics.

Owns the one spelling of each number. Installs and sends nothing.

Rules: signal(7); ``RTMIN+n`` as kill(1) of util-linux and systemd count real-time signals.
"""

from __future__ import annotations

import signal


def signal_name(signo: int) -> str:
    """Name a signal.

    :returns: ``"SIGKILL"`` for 9; ``"SIGRTMIN+3"`` for a real-time one; ``"signal 32"`` for one
        that the C library keeps for itself, and for a number that is no signal.
    """
    try:
        return signal.Signals(signo).name
    except ValueError:
        pass
    if signal.SIGRTMIN < signo < signal.SIGRTMAX:
        return f"SIGRTMIN+{signo - signal.SIGRTMIN}"
    return f"signal {signo}"
