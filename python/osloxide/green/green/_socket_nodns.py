"""``eventlet.green._socket_nodns``: as :mod:`osloxide.green.green.socket`."""

from osloxide.green.green import socket as _green
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_green, globals(), srckeys=dir(_green))
__all__ = _green.__all__
__patched__ = ["fromfd", "socketpair", "ssl", "socket", "timeout"]
