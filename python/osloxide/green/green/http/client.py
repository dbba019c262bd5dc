"""``eventlet.green.http.client``: a copy of the standard module whose sockets wait at the hub."""

from osloxide.green._core import copies as _copies
from osloxide.green.green import socket as _socket
from osloxide.green.green import ssl as _ssl

_copies.fill(globals(), "http.client", {"socket": _socket, "ssl": _ssl})
