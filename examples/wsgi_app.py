"""Any WSGI application. Serve it from this directory with: osloxide serve wsgi_app:application"""

import os
from collections.abc import Callable, Iterable
from typing import Any


def application(
    environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"pid {os.getpid()} answers {environ['PATH_INFO']}\n".encode()]
