"""What ``osloxide serve`` tells its servers, in place of oslo.config.

Owns the plain object with the names and the defaults of ``oslo_service.wsgi``'s options: a server
reads either in the same way, and a command imports no oslo.config for it. Checks nothing.

Rules: oslo_service._options; tests/python/test_lean_parent.py holds the defaults against it.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TlsSettings:
    """The group ``ssl`` of :class:`Settings`."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    version: str | None = None
    ciphers: str | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of a server, in the group DEFAULT where oslo.config has them."""

    ssl: TlsSettings = dataclasses.field(default_factory=TlsSettings)
    wsgi_log_format: str = (
        '%(client_ip)s "%(request_line)s" status: %(status_code)s  len: %(body_length)s time:'
        " %(wall_seconds).7f"
    )
    tcp_keepidle: int = 600
    wsgi_default_pool_size: int = 100
    max_header_line: int = 16384
    wsgi_keep_alive: bool = True
    client_socket_timeout: int = 900
    wsgi_server_debug: bool = False
