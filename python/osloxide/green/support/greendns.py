"""``eventlet.support.greendns``: the C library's resolver.

A look-up blocks the thread of its greenthread alone, so the resolver of eventlet's own is not
needed: ``/etc/nsswitch.conf`` holds, as without eventlet.
"""

from __future__ import annotations

import ipaddress
import socket
from socket import getaddrinfo, gethostbyname, gethostbyname_ex, getnameinfo

__all__ = [
    "getaddrinfo",
    "gethostbyname",
    "gethostbyname_ex",
    "getnameinfo",
    "is_ip_addr",
    "is_ipv4_addr",
    "is_ipv6_addr",
]


def is_ipv4_addr(host: str) -> bool:
    """Whether *host* is an IPv4 address."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, TypeError, ValueError):
        return False
    return True


def is_ipv6_addr(host: str) -> bool:
    """Whether *host* is an IPv6 address, with or without a zone."""
    try:
        ipaddress.IPv6Address(host)
    except (TypeError, ValueError):
        return False
    return True


def is_ip_addr(host: str) -> bool:
    """Whether *host* is an address."""
    return is_ipv4_addr(host) or is_ipv6_addr(host)
