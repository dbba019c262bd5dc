"""``eventlet.green.OpenSSL``: pyOpenSSL, whose connections wait at the hub."""

from osloxide.green.green.OpenSSL import SSL, crypto
from osloxide.green.green.OpenSSL.version import __version__

__all__ = ["SSL", "__version__", "crypto"]
