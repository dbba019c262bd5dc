"""``osloxide check``: would this command run on osloxide, and what would be replaced?

Looks from inside: it starts the command's interpreter with the environment of ``osloxide run``,
reads what the command runs as its main module, imports what that imports, and reports. The main
module itself is not run. What cannot be looked into is a problem, and never said to be ready.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osloxide.activation import environment, eventlet_names
from osloxide.cli import target
from osloxide.cli.errors import CommandError
from osloxide.exceptions import ActivationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_TIMEOUT = 120.0
"""Seconds that the imports of a service may take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide check``."""
    parser.add_argument("command", metavar="COMMAND", help="a script or program, as for a shell")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="...", help="as for 'osloxide run'")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--no-import",
        action="store_true",
        help="do not import the modules that the command imports",
    )


def main(options: argparse.Namespace) -> int:
    """Print the report; 0 when the command would work, else 1."""
    environ = environment.activated(os.environ)
    try:
        serves_eventlet = eventlet_names.wants_native(environ)
    except ActivationError as error:
        raise CommandError(str(error)) from error
    program = target.resolve(options.command, options.arguments, environ)
    report: dict[str, Any] = {"command": program.path, "problems": []}
    try:
        if program.interpreter is None:
            raise CommandError(
                f"cannot tell which Python {program.path} runs; check what it starts instead, "
                "for example 'osloxide check /path/to/python3 SCRIPT'"
            )
        target.verify(program, environ)
        main_module = target.main_module(program, options.arguments)
        report |= _probe(program, main_module, environ, imports=not options.no_import)
    except CommandError as error:
        report["problems"].append(str(error))
    report["environment"] = {
        name: environ[name]
        for name in (environment.ENABLED, *environment.EVENTLET_SWITCHES, "PYTHONPATH")
    }
    report["problems"] += [
        f"{switch}={environ[switch]} makes its service keep eventlet; unset it, or set it to 1"
        for switch in (() if serves_eventlet else environment.keeps_eventlet(environ))
    ]
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_lines(report, shlex.join([options.command, *options.arguments]))))
    return 1 if report["problems"] else 0


def _probe(
    program: target.Target,
    main_module: tuple[str, str],
    environ: Mapping[str, str],
    *,
    imports: bool,
) -> dict[str, Any]:
    interpreter = str(program.interpreter)
    with tempfile.TemporaryDirectory(prefix="osloxide-check-") as directory:
        destination = Path(directory, "report")
        try:
            probe = ["-m", "osloxide.cli._probe", str(destination), "imports" if imports else ""]
            result = subprocess.run(  # noqa: S603 - the command that the user named
                [interpreter, *program.flags, *probe, *main_module],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandError(
                f"the imports of {program.path} took more than {_TIMEOUT:.0f} s; "
                "try again with --no-import"
            ) from error
        if not destination.exists():
            last = result.stderr.strip().rpartition("\n")[2]
            raise CommandError(
                f"{interpreter} ended with status {result.returncode} during the check: {last}"
            )
        report: dict[str, Any] = json.loads(destination.read_text(encoding="utf-8"))
        return report


def _eventlet(report: Mapping[str, Any]) -> str:
    """What the command's imports got under that name."""
    if report["monkey_patched_by"]:
        return f"monkey-patched by {report['monkey_patched_by']}"
    if not report["eventlet_imported"]:
        return "not imported"
    if report["eventlet_served_by"] == "osloxide":
        asked = ", monkey_patch() is a no-op" if report["eventlet_patching"] else ""
        return f"served by osloxide, {len(report['eventlet_modules'])} modules{asked}"
    return "imported, the real one"


def _lines(report: Mapping[str, Any], command: str) -> list[str]:
    rows = [("command", report["command"])]
    if "interpreter" in report:
        python = report["interpreter"]
        rows.append(
            ("interpreter", f"{python['path']} ({python['implementation']} {python['version']})")
        )
        rows += [(name, version) for name, version in report["versions"].items() if version]
        if "module" in report:
            rows.append(("imported", report["module"]["name"]))
        rows.append(("backend type", report["backend"] or "not selected at import"))
        if report["cotyledon"]:
            rows.append(
                ("supervisor", "cotyledon, if the command uses it; osloxide leaves it alone")
            )
        rows.append(("eventlet", _eventlet(report)))
        rows += [("eventlet", f"{name} is not served") for name in report["eventlet_missing"]]
        rows += [
            ("replaced", f"{alias['name']} by {alias['served_by']}")
            for alias in report["aliases"]
            if alias["served_by"]
        ]
    rows += [("environment", f"{name}={value}") for name, value in report["environment"].items()]
    lines = [f"{name:14} {value}" for name, value in rows]
    if report["problems"]:
        return [*lines, *(f"problem: {problem}" for problem in report["problems"])]
    return [*lines, f"ready: 'osloxide run {command}' will use osloxide"]
