"""``eventlet.green.http.cookiejar``: the standard library's own."""

import http.cookiejar as _std

from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__osloxide_differs__ = False
__patched__: list[str] = []
