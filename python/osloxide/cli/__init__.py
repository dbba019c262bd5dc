"""The ``osloxide`` command.

Owns the parser and how errors end: one line on stderr that starts with ``osloxide:``, and an exit
status. What each subcommand does is in the module of its name, imported only when it is asked for,
because ``run`` stands in front of every start of a service.
"""

from __future__ import annotations

import os
import sys

from osloxide.cli.errors import CommandError

# Type checkers know the name; importing it, pathlib or importlib would double what a probe costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_UWSGI = ("uwsgi", "uwsgi_python3", "uwsgi-core")
"""Names under which a link to this command takes uWSGI's command line."""

SUBCOMMANDS = {
    "run": "run a service on osloxide",
    "check": "tell whether a service would run on osloxide, and what would be replaced",
    "status": "show the workers of running services",
    "top": "show the workers of running services, live",
    "metrics": "offer the figures of running services to Prometheus",
    "serve": "serve a WSGI application",
    "uwsgi": "serve what uWSGI would serve, from its command line and ini files",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``osloxide`` command and return its exit status.

    0 means that all went well, 1 that something failed, 2 that the command line is wrong, 126 and
    127 what they mean to a shell: a command that cannot be executed, or was not found.
    """
    try:
        return _main(arguments)
    except ImportError as error:
        from osloxide.activation import native_module

        if error.name != native_module.NAME:
            raise
        print(f"osloxide: {error}", file=sys.stderr)
        return 1


def _main(arguments: Sequence[str] | None) -> int:
    _open_standard_descriptors()
    words = _own_arguments() if arguments is None else list(arguments)
    if words[:1] in (["run"], ["serve"], ["uwsgi"]):
        # An application that is loaded first may put a launcher's own handlers off for long.
        from osloxide.activation import process_1

        process_1.obey_sigterm()
    if words[:1] == ["uwsgi"]:
        # Its options are not argparse's: single dashes, prefixes and order mean other things.
        from osloxide.cli import uwsgi

        return _ended(lambda: uwsgi.run(words[1:]))
    if words[:2] == ["status", "--ready"]:
        # A probe, started every few seconds: it does without argparse.
        from osloxide.cli import ready

        return _ended(lambda: ready.main(words[2:]))
    import argparse
    from importlib import import_module

    parser = argparse.ArgumentParser(
        prog="osloxide", description="oslo.service's launchers, signals and WSGI server in Rust."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    chosen = words[0] if words else ""
    kind = argparse.ArgumentParser
    if chosen == "serve":
        kind = import_module("osloxide.cli.gunicorn").Parser
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", parser_class=kind)
    for name, purpose in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=purpose, description=purpose.capitalize() + "."
        )
        if name == chosen:
            import_module(f"osloxide.cli.{name}").add_arguments(subparser)
    words, separator, rest = _partition(words, chosen)
    options = parser.parse_args(words)
    if separator:
        options.pyargv = rest
    if options.version:
        return _print_version()
    if options.subcommand is None:
        parser.error(f"name a subcommand: {', '.join(SUBCOMMANDS)}")
    return _ended(lambda: import_module(f"osloxide.cli.{options.subcommand}").main(options))


def _open_standard_descriptors() -> None:
    """Have no socket or file of a service get the number of one of the three that is closed.

    Here as well as in launchers (osloxide.launch.standard_streams): sockets are bound before one is
    made, and a command that ``run`` executes may open files of its own.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which this one is
            os.set_inheritable(opened, True)
    # The interpreter has none for a descriptor that was closed when it began.
    if sys.stdout is None:
        sys.stdout = open(1, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _own_arguments() -> list[str]:
    """Those of this process; a link called ``uwsgi`` takes uWSGI's."""
    linked = sys.argv[0].rpartition("/")[2] in _UWSGI
    return ["uwsgi", *sys.argv[1:]] if linked else sys.argv[1:]


def _ended(command: Callable[[], int]) -> int:
    """Run a subcommand; returns its exit status, and explains how it ended."""
    try:
        return int(command())
    except CommandError as error:
        print(f"osloxide: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # The reader of our output went away (a pager that was quit). Python would complain again
        # when it flushes stdout at exit.
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def _partition(arguments: list[str], subcommand: str) -> tuple[list[str], bool, list[str]]:
    """What stands before and behind the first ``--`` of ``osloxide serve``."""
    if subcommand != "serve" or "--" not in arguments:
        return arguments, False, []
    place = arguments.index("--")
    return arguments[:place], True, arguments[place + 1 :]


def _print_version() -> int:
    from importlib.metadata import version

    print(f"osloxide {version('osloxide')}")
    return 0
