"""The file that ``osloxide serve --log-file`` writes to.

Owns stdout and stderr of the command: everything that it, its workers and their commands write goes
there, as uWSGI's ``logto`` has it. SIGUSR1 opens the file again, see osloxide.cli.operator_signals.
"""

from __future__ import annotations

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
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
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
        raise CommandError(f"--log-file {path}: {error.strerror}") from error
