"""A WSGI application that tells what kind of process answers: mounted at ``/process``.

The demo adds it to its copy of cinder's api-paste.ini, the way a deployer adds a middleware, and
so asks the workers of an unmodified ``cinder-api`` from the inside: pid, whether eventlet patched
the standard library, whether an eventlet hub exists, and who provides oslo.service's launchers.
"""

import gc
import inspect
import json
import os
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from oslo_config import cfg
from oslo_service import service


def eventlets_own(name: str) -> Any:
    """Module *name* of eventlet, if loaded; what osloxide serves under it is none."""
    module = sys.modules.get(name)
    return module if module is not None and module.__name__ == name else None


def patched_modules() -> list[str]:
    """The standard modules that eventlet has monkey-patched in this process."""
    patcher = eventlets_own("eventlet.patcher")
    return sorted(patcher.already_patched) if patcher else []


def eventlet_hubs() -> int:
    """Number of eventlet hubs alive, whatever thread they belong to."""
    hub = eventlets_own("eventlet.hubs.hub")
    return sum(isinstance(x, hub.BaseHub) for x in gc.get_objects()) if hub else 0


def facts() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "debug": cfg.CONF.debug,
        "patched": patched_modules(),
        "hubs": eventlet_hubs(),
        "threads": threading.active_count(),
        "launcher": inspect.getsourcefile(service.ProcessLauncher),
    }


def application(
    environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    """Answer with one line of JSON; ``?hold=SECONDS`` sends a second line that much later."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield json.dumps(facts()).encode() + b"\n"
    query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
    if "hold" in query:
        time.sleep(float(query["hold"][0]))
        yield b"held\n"


def app_factory(global_conf: dict[str, str], **local_conf: str) -> Callable[..., Any]:
    """Entry point for paste.deploy: ``paste.app_factory = process_facts:app_factory``."""
    return application
