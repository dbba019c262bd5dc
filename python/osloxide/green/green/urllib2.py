"""``eventlet.green.urllib2``: the old name of ``eventlet.green.urllib.request``."""

from osloxide.green.green.urllib import request as _request
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_request, globals(), srckeys=dir(_request))
