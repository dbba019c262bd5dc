"""Paste filter in front of a real API: names the worker, holds requests, reports on its process.

It rides inside the service's own processes, so what it says about monkey-patching is first-hand.
Imports nothing that could change what it reports: eventlet is only looked up among the modules
that are loaded already.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

LOG = logging.getLogger("cinder.service_probe")
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def _real(name: str) -> Any:
    """Module *name* of eventlet, if it is loaded; what osloxide serves under the name is none."""
    module = sys.modules.get(name)
    return module if module is not None and module.__name__ == name else None


def facts() -> dict[str, Any]:
    """How this process executes: monkey-patching, eventlet's hub, threads."""
    patcher, hubs = _real("eventlet.patcher"), _real("eventlet.hubs")
    return {
        "pid": os.getpid(),
        "patched": sorted(getattr(patcher, "already_patched", {})),
        "hub": bool(hubs and hasattr(hubs._threadlocal, "hub")),
        "green_lock": type(threading.Lock()).__module__.startswith("eventlet"),
        "green_sleep": time.sleep.__module__.startswith("eventlet")
        if getattr(time.sleep, "__module__", None)
        else False,
        "threads": len(os.listdir("/proc/self/task")),
    }


def factory(_global: dict[str, str], **_local: str) -> Callable[[Application], Application]:
    """Paste's filter factory."""

    def wrap(application: Application) -> Application:
        def probed(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                return start_response(status, [*headers, ("X-Worker-Pid", str(os.getpid()))], *rest)

            if environ["PATH_INFO"] == "/probe":
                body = json.dumps(facts()).encode()
                start("200 OK", [("Content-Length", str(len(body)))])
                return [body]
            if delay := float(environ.get("HTTP_X_PROBE_DELAY", 0)):
                LOG.warning("holding a request for %s s", delay)
                time.sleep(delay)
            return application(environ, start)

        return probed

    return wrap
