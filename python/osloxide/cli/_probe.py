"""What the interpreter of a checked command looks like from inside.

Runs in that interpreter, started by ``osloxide check`` with the environment that ``osloxide run``
would give it. Imports what the service would import, calls nothing of it, and writes one JSON
document to the file it is told: stdout belongs to the modules that are imported.
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


def main() -> None:
    """Probe; arguments are the file to write to, and the module to import or nothing."""
    destination, module = sys.argv[1:3]
    report = _report(module)
    with open(destination, "w", encoding="utf-8") as file:
        json.dump(report, file)


def _report(module: str) -> dict[str, Any]:
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
    if module:
        report["module"] = {"name": module} | _import(module, problems)
    # Its own imports of cotyledon alone: oslo.service's threading backend is osloxide's here.
    report["cotyledon"] = "cotyledon" in sys.modules
    # What the service's own imports decided; asking for the aliases would change the answer.
    backend = sys.modules.get("oslo_service.backend")
    chosen = getattr(backend, "_cached_backend_type", None)
    report["backend"] = getattr(chosen, "value", None)
    report |= _eventlet(problems)
    report["monkey_patched_by"] = library = import_hook.patched_by()
    if library is not None:
        problems.append(
            f"{module or 'a startup file of this interpreter'} monkey-patches with {library} when "
            "it is imported, and osloxide refuses such a process; find its switch, such as "
            "OS_NOVA_DISABLE_EVENTLET_PATCHING=1"
        )
        report["aliases"] = []
    else:
        report["aliases"] = _aliases(problems)
    return report


def _eventlet(problems: list[str]) -> dict[str, Any]:
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
        from osloxide.cli import eventlet_uses
        from osloxide.green import patcher

        result["eventlet_patching"] = any(patcher.requested.values())
        used = eventlet_uses.of(sys.modules)
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


def _import(module: str, problems: list[str]) -> dict[str, Any]:
    began = time.monotonic()
    try:
        importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001 - a service's module may raise anything
        problems.append(f"importing {module} failed: {type(error).__name__}: {error}")
        return {"imported": False}
    return {"imported": True, "seconds": round(time.monotonic() - began, 3)}


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
