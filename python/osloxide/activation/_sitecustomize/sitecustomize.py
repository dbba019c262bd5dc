"""Installs osloxide's import hook when the interpreter starts, then runs the next sitecustomize.

Found first because ``osloxide run`` puts this directory in front of PYTHONPATH. It never fails an
interpreter that has no osloxide (PYTHONPATH is inherited by programs of other environments), and
never hides the sitecustomize that the distribution, ddtrace or OpenTelemetry brought.

Rules: site (sitecustomize is imported once, errors other than ImportError are printed and ignored).
"""

import os
import sys


def _install() -> None:
    if os.environ.get("OSLOXIDE", "0") in ("", "0"):
        return
    try:
        from osloxide.activation import eventlet_names, import_hook, process_1
    except ImportError:
        return  # another environment's interpreter
    process_1.obey_sigterm()
    process_1.release_sigterm()
    testing = os.environ.get("OSLOXIDE_TESTING", "0") not in ("", "0")
    import_hook.install(
        deferred=True,
        tolerate_eventlet=testing,
        serve_eventlet=not testing and eventlet_names.wants_native(os.environ),
    )


def _run_next() -> None:
    """Execute the sitecustomize that this one hides.

    Others chain as well, and may come back to this one: ``sys._osloxide_chained`` remembers the
    files that have run, so that each runs once.
    """
    from importlib.machinery import PathFinder

    here = os.path.realpath(os.path.dirname(__file__))
    chained = sys.__dict__.setdefault("_osloxide_chained", set())
    for entry in sys.path:
        if os.path.realpath(entry or os.getcwd()) == here:
            continue
        spec = PathFinder.find_spec("sitecustomize", [entry])
        if spec is None or spec.loader is None or spec.origin in chained:
            continue
        chained.add(spec.origin)
        from importlib.util import module_from_spec

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)
        return


try:
    _install()
finally:
    _run_next()
