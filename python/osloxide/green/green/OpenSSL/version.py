"""``eventlet.green.OpenSSL.version``: the module that is installed."""

import OpenSSL.version as _std

from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__version__ = _std.__version__

__osloxide_differs__ = False
__patched__: list[str] = []
