"""``eventlet.backdoor``: refused.

An interpreter on a socket runs commands beside the service. On native threads each of them would
run in the middle of whatever the service does, while eventlet promised that it waits its turn.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["backdoor", "backdoor_server"]

_REASON = (
    "osloxide serves eventlet from native threads and refuses its backdoor: commands would run in "
    "the middle of what the service does; leave backdoor_port and backdoor_socket unset, and look "
    "into a process with 'osloxide top' or py-spy, or run on the real eventlet with "
    "OSLOXIDE_EVENTLET=real"
)


def backdoor_server(sock: Any, locals: Any = None) -> NoReturn:
    """Refused.

    :raises NotImplementedError: always.
    """
    del sock, locals
    raise NotImplementedError(_REASON)


def backdoor(conn_info: Any, locals: Any = None) -> NoReturn:
    """Refused.

    :raises NotImplementedError: always.
    """
    del conn_info, locals
    raise NotImplementedError(_REASON)
