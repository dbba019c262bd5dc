"""``eventlet.green.urllib.request``: a copy of the standard module over green HTTP and FTP."""

from osloxide.green._core import copies as _copies
from osloxide.green.green import ftplib as _ftplib
from osloxide.green.green import http as _http
from osloxide.green.green import os as _os
from osloxide.green.green import socket as _socket
from osloxide.green.green import ssl as _ssl
from osloxide.green.green import time as _time

_copies.fill(
    globals(),
    "urllib.request",
    {
        "ftplib": _ftplib,
        "http": _http,
        "os": _os,
        "socket": _socket,
        "ssl": _ssl,
        "time": _time,
    },
)
