"""What test suites need to run against osloxide.

Owns the variable that tells this process and its children that a test suite is running. The pytest
plugin is ``osloxide.testing.plugin``; nothing here imports pytest.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module

from osloxide.activation import environment, import_hook

VARIABLE = "OSLOXIDE_TESTING"
"""``1`` while a test suite runs: tolerates eventlet beside osloxide, and makes the WSGI server
forgive what oslo.service's own tests send."""


def is_testing() -> bool:
    """Whether this process belongs to a test suite that runs on osloxide."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def activate() -> None:
    """Serve oslo.service from osloxide in this process, and in those that it starts.

    Call it before anything imports ``oslo_service.service``.

    :raises osloxide.exceptions.ActivationError: it is too late, or oslo.service's version is not
        supported.
    """
    os.environ[VARIABLE] = "1"
    # oslo.service's own test package monkey-patches unless told not to.
    os.environ.setdefault("OSLO_SERVICE_SKIP_EVENTLET", "1")
    os.environ.update(environment.activated(os.environ))
    import_hook.install(tolerate_eventlet=True)
    # Tests lean on what oslo_service.wsgi imports for them, and on a server that forgives.
    with warnings.catch_warnings():
        # A suite that turns warnings into errors cannot help what WebOb imports.
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in ("routes.middleware", "webob.dec", "webob.exc"):
            import_module(name)

    from osloxide import wsgi

    wsgi.Server._lenient = True
