"""``eventlet.green.threading``: the standard library's own."""

import threading as _std

from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__osloxide_differs__ = False
__patched__: list[str] = []
