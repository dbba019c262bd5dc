"""``eventlet.green.asyncore``: the standard library's own, up to CPython 3.11.

CPython 3.12 dropped it; there eventlet has an empty module under this name, and so has this one.
"""

import sys

if sys.version_info < (3, 12):
    import asyncore as _std

    from osloxide.green.patcher import slurp_properties as _slurp

    _slurp(_std, globals(), srckeys=dir(_std))

__osloxide_differs__ = False
__patched__: list[str] = []
