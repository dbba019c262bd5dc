"""What the interpreter of a checked command looks like from inside.

Runs in that interpreter, started by ``osloxide check`` with the environment that ``osloxide run``
would give it. Imports what the command's main module would import, calls nothing of it, and writes
one JSON document to the file it is told: stdout belongs to the modules that are imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys
import time
from typing import Any

from osloxide.activation import import_hook
from osloxide.cli import eventlet_uses, main_source
from osloxide.cli.errors import CommandError


def main() -> None:
    """Probe.

    Arguments are the file to write to, ``imports`` or nothing, and what :func:`main_source.read` is
    given.
    """
    destination, imports, kind, value = sys.argv[1:5]
    report = _report(kind, value, imports=bool(imports))
    with open(destination, "w", encoding="utf-8") as file:
        json.dump(report, file)


def _report(kind: str, value: str, *, imports: bool) -> dict[str, Any]:
    problems: list[str] = []
    report: dict[str, Any] = {
        "interpreter": {
            "path": sys.executable,
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
        },
        "versions": {
            name: _version(name) for name in ("osloxide", "oslo.service", "oslo.messaging")
        },
        "hook": import_hook.is_installed(),
        "problems": problems,
    }
    if not import_hook.is_installed():
        problems.append("the import hook is not active: osloxide's sitecustomize did not run")
    source = None
    try:
        source = main_source.read(kind, value)
        source.imports()
    except CommandError as error:
        source = None
        problems.append(f"{error}; what it would run is unknown")
    else:
        if (called := source.hands_on()) is not None:
            problems.append(
                f"{source.name} imports nothing but Python's own modules, and calls {called}(): "
                "what that runs is unknown; check that instead"
            )
        if imports:
            report["module"] = _import(source, problems)
    # Its own imports of cotyledon alone: oslo.service's threading backend is osloxide's here.
    report["cotyledon"] = "cotyledon" in sys.modules
    # What the service's own imports decided; asking for the aliases would change the answer.
    backend = sys.modules.get("oslo_service.backend")
    chosen = getattr(backend, "_cached_backend_type", None)
    report["backend"] = getattr(chosen, "value", None)
    report |= _eventlet(source, problems)
    report["monkey_patched_by"] = library = import_hook.patched_by()
    patching = report.get("module", {}).get("name") or "a startup file of this interpreter"
    real = report["eventlet_served_by"] == "eventlet"
    if real and library is None and source is not None and _patches(source):
        patching = source.name
        report["monkey_patched_by"] = library = "eventlet"
    if library is not None:
        problems.append(
            f"{patching} monkey-patches with {library} when it is imported, and osloxide refuses "
            "such a process; find its switch, such as OS_NOVA_DISABLE_EVENTLET_PATCHING=1"
        )
        report["aliases"] = []
    else:
        report["aliases"] = _aliases(problems)
    return report


def _eventlet(source: main_source.MainSource | None, problems: list[str]) -> dict[str, Any]:
    """Who serves eventlet, what was imported of it, and what is used of it that is not served."""
    module = sys.modules.get("eventlet")
    served = module is not None and module.__name__.startswith("osloxide.")
    result: dict[str, Any] = {
        "eventlet_imported": module is not None,
        "eventlet_served_by": None if module is None else "osloxide" if served else "eventlet",
        "eventlet_modules": [],
        "eventlet_patching": False,
        "eventlet_missing": [],
    }
    if served:
        from osloxide.green import patcher

        result["eventlet_patching"] = any(patcher.requested.values())
        used = eventlet_uses.of(sys.modules)
        if source is not None:
            for name in eventlet_uses.in_tree(source.tree):
                used.setdefault(name, set()).add(source.name)
        result["eventlet_modules"] = sorted(
            name for name in sys.modules if name.partition(".")[0] == "eventlet"
        )
        result["eventlet_missing"] = missing = eventlet_uses.missing(used)
        problems += [
            f"{name} is used by {', '.join(sorted(used[name])[:3])} and not served by osloxide; "
            "that part of the service fails when it is reached; where it is needed, start the "
            "service with OSLOXIDE_EVENTLET=real, without osloxide's launchers"
            for name in missing
        ]
    return result


def _import(source: main_source.MainSource, problems: list[str]) -> dict[str, Any]:
    """Import what *source* would import."""
    wanted = source.imports()
    modules = dict.fromkeys(found.module for found in wanted)
    named = [name for name in modules if not main_source.is_standard(name)] or list(modules)
    result = {"name": ", ".join(named), "imported": True}
    if source.directory is not None and not sys.flags.safe_path:
        sys.path[0] = source.directory
    began = time.monotonic()
    for found in wanted:
        try:
            module = importlib.import_module(found.module)
            if found.name is not None and not hasattr(module, found.name):
                importlib.import_module(f"{found.module}.{found.name}")
        except BaseException as error:  # noqa: BLE001 - a service's module may raise anything
            if found.optional:
                continue
            problems.append(f"importing {found.module} failed: {type(error).__name__}: {error}")
            return result | {"imported": False}
        if module.__name__ == "osloxide.green" and _patches(source):
            module.monkey_patch()  # which is noted, and decides the type of oslo.service's backend
    return result | {"seconds": round(time.monotonic() - began, 3)}


def _patches(source: main_source.MainSource) -> bool:
    """Whether *source* has a call of eventlet's ``monkey_patch()``."""
    return any(name.endswith(".monkey_patch") for name in eventlet_uses.in_tree(source.tree))


def _aliases(problems: list[str]) -> list[dict[str, Any]]:
    rows = []
    for alias, real in import_hook.aliases().items():
        error = None
        try:
            served = importlib.import_module(alias).__name__
        except Exception as caught:  # noqa: BLE001 - reported
            served, error = None, f"{type(caught).__name__}: {caught}"
            problems.append(f"{alias} cannot be served: {error}")
        else:
            if served != real:
                problems.append(f"{alias} is served by {served}, not by {real}")
        rows.append({"name": alias, "served_by": served, "error": error})
    return rows


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
