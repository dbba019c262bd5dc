"""Servers and clients that encrypt, with the certificates of the Rust tests."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from oslo_config import cfg
from oslo_service import _options

from support.raw_http import Connection, configuration

CERTIFICATES = Path(__file__).parents[2] / "certificates"


def tls_configuration(**options: Any) -> cfg.ConfigOpts:
    """A configuration for ``use_ssl=True``, with *options* of the group DEFAULT overridden."""
    conf = configuration(**options)
    conf.register_opts(_options.ssl_opts, "ssl")
    conf.set_override("cert_file", str(CERTIFICATES / "server.crt"), "ssl")
    conf.set_override("key_file", str(CERTIFICATES / "server.key"), "ssl")
    return conf


class TLSConnection(Connection):
    """A connection that encrypts, and to which an end without ``close_notify`` is an error."""

    def __init__(self, address: tuple[str, int], receive_buffer: int | None = None) -> None:
        super().__init__(address, receive_buffer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket, suppress_ragged_eofs=False)
