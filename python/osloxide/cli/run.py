"""``osloxide run``: execute a service's own script with the import hook active.

Prepares the environment and replaces this process by the target: its pid, its argv[0] and its
outermost frame are what they would be without osloxide, which systemd and cinder's service names
rely on. It leaves nothing running beside the target.

Rules: execve(2); the signal dispositions that execve keeps are put back as they were.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from osloxide.activation import environment, eventlet_names, process_1
from osloxide.cli import target
from osloxide.cli.errors import NOT_EXECUTABLE, CommandError
from osloxide.exceptions import ActivationError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide run``."""
    parser.usage = (
        "osloxide run [-h] [--eventlet {native,real}] [--native-rpc] [--unchecked] "
        "COMMAND [ARGUMENT ...]"
    )
    parser.add_argument(
        "--eventlet",
        choices=("native", "real"),
        help="who serves the name eventlet: osloxide, on native threads (the default), or the real "
        "library; the same as the variable OSLOXIDE_EVENTLET",
    )
    parser.add_argument(
        "--native-rpc",
        action="store_true",
        help="RPC and notifications over RabbitMQ natively instead of by kombu, servers included; "
        "the same as "
        f"the variable {environment.NATIVE_RPC}=1",
    )
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="do not check first that the command's interpreter would load osloxide",
    )
    parser.add_argument("command", metavar="COMMAND", help="a script or program, as for a shell")
    parser.add_argument(
        "arguments",
        metavar="ARGUMENT",
        nargs="...",
        help="passed on as they are, also when they start with a dash",
    )


def main(options: argparse.Namespace) -> NoReturn:
    """Become the command."""
    environ = environment.activated(os.environ)
    if options.eventlet is not None:
        environ[eventlet_names.VARIABLE] = options.eventlet
    if options.native_rpc:
        environ[environment.NATIVE_RPC] = "1"
    try:
        serves_eventlet = eventlet_names.wants_native(environ)
        environment.wants_native_rpc(environ)
    except ActivationError as error:
        raise CommandError(str(error)) from error
    program = target.resolve(options.command, options.arguments, environ)
    if not options.unchecked:
        if program.interpreter is None:
            _warn(
                f"cannot tell which Python {program.path} runs; make sure that it has osloxide "
                "and honours PYTHONPATH"
            )
        target.verify(program, environ)
    for switch in () if serves_eventlet else environment.keeps_eventlet(environ):
        _warn(
            f"{switch}={environ[switch]} makes its service monkey-patch, and osloxide will refuse "
            "that process; unset it, or set it to 1"
        )
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter ignores these two; execve would hand that down to programs that count on the
    # default, such as a shell's pipelines.
    for signo in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signo, signal.SIG_DFL)
    if program.interpreter is not None and not options.unchecked:
        process_1.hold_sigterm()  # its sitecustomize takes it, which was checked
    arguments = [options.command if not program.is_script else program.path, *options.arguments]
    try:
        os.execve(program.path, arguments, environ)  # noqa: S606 - what the user asked for
    except OSError as error:
        raise CommandError(
            f"{program.path} cannot be executed: {error.strerror}; check that file and the "
            "interpreter in its #! line",
            NOT_EXECUTABLE,
        ) from error


def _warn(message: str) -> None:
    print(f"osloxide: warning: {message}", file=sys.stderr)
