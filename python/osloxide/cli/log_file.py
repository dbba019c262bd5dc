"""The file that ``osloxide serve --log-file`` writes to.

Owns stdout and stderr of the command: everything that it, its workers and their commands write goes
there, as uWSGI's ``logto`` has it. SIGUSR1 opens the file again, see osloxide.cli.operator_signals.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from osloxide.cli import privileges
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    import argparse


def redirect(options: argparse.Namespace) -> None:
    """Open the file and write there from now on.

    :raises CommandError: it cannot be opened, or given to its owner.
    """
    path: str = options.log_file
    try:
        descriptor = open_for_writing(path, os.O_APPEND)
        try:
            if options.log_file_mode is not None:
                os.fchmod(descriptor, options.log_file_mode)
            if options.log_file_owner:
                privileges.owner(options.log_file_owner, "--log-file-owner").give(path)
            for stream in (sys.__stdout__, sys.__stderr__):
                if stream is not None:
                    stream.flush()
            for number in (1, 2):
                os.dup2(descriptor, number)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CommandError(f"--log-file {path}: {error.strerror}; {remedy(error)}") from error


def open_for_writing(path: str, how: int) -> int:
    """Open a file, made if need be; a pipe that nothing reads is not waited for.

    :param how: O_APPEND, or O_TRUNC.
    :returns: its descriptor, which writes as ever: it waits for a slow reader.
    :raises OSError: it cannot be opened; ENXIO for a pipe without a reader.
    """
    flags = os.O_WRONLY | os.O_CREAT | how | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def remedy(error: OSError) -> str:
    """What the operator can do about a file that cannot be opened for writing."""
    if error.errno == errno.ENXIO:
        return "it is a socket, or a pipe that nothing reads; start its reader first"
    return "give a file that this user may write, in a directory that exists"
