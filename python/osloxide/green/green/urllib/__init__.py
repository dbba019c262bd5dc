"""``eventlet.green.urllib``: the standard library's own, beside modules of its own."""

import urllib as _std
from types import ModuleType as _ModuleType

from osloxide.green.patcher import slurp_properties as _slurp

# A submodule that some program has imported is no name of this package: its own would be hidden.
_modules = [name for name, value in vars(_std).items() if isinstance(value, _ModuleType)]
_slurp(_std, globals(), ignore=_modules, srckeys=dir(_std))

__osloxide_differs__ = False
__patched__: list[str] = []
