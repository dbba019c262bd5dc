"""What test suites need to run against osloxide.

Owns the activation of a process in which a test suite runs. The pytest plugin is
``osloxide.testing.plugin``; nothing here imports pytest.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module

from osloxide.activation import environment, import_hook


def activate() -> None:
    """Serve oslo.service from osloxide in this process, and in those that it starts.

    Call it before anything imports ``oslo_service.service``.

    :raises osloxide.exceptions.ActivationError: it is too late, or oslo.service's version is not
        supported.
    """
    os.environ[environment.TESTING] = "1"
    # oslo.service's own test package monkey-patches unless told not to.
    os.environ.setdefault("OSLO_SERVICE_SKIP_EVENTLET", "1")
    os.environ.update(environment.activated(os.environ))
    import_hook.install(tolerate_eventlet=True)
    # Tests lean on what oslo_service.wsgi imports for them.
    with warnings.catch_warnings():
        # A suite that turns warnings into errors cannot help what WebOb imports.
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in ("routes.middleware", "webob.dec", "webob.exc"):
            import_module(name)
