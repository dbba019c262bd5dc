"""What ``osloxide serve`` sets up in its process before an application is loaded, and on SIGHUP.

Owns the environment, the working directory, the module path, ``sys.argv`` and logging. The parent
prepares once before the first fork and again on SIGHUP, so that workers inherit it; a directory
behind a symbolic link is found where the link points then. Loads no application.
"""

from __future__ import annotations

import importlib
import logging
import logging.config
import os
import site
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from osloxide.cli.errors import CommandError
from osloxide.cli.site import in_one_line

if TYPE_CHECKING:
    import argparse

LOG_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"

LOG = logging.getLogger("osloxide.serve")


class Preparation:
    """Sets the process up as *options* say.

    :ivar environ: the environment that the command was started with.
    :ivar directory: where it was started, through the symbolic links that led there.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.environ = dict(os.environ)
        self.directory = _working_directory()

    def apply(self) -> None:
        """Before the first fork.

        :raises CommandError: a directory or a file is not there, or of no use.
        """
        options = self._options
        if options.venv is not None:
            _enter_venv(options.venv)
        os.environ.update(options.env or ())
        for name in options.unset_env or ():
            os.environ.pop(name, None)
        self._enter_directory()
        if options.umask is not None:
            os.umask(options.umask)
        self._configure_logging()

    def apply_again(self) -> bool:
        """On SIGHUP. What cannot be used is reported, and stays as it was.

        :returns: whether everything could be used.
        """
        is_whole = True
        try:
            os.chdir(self.directory)
        except OSError as error:
            LOG.error("cannot enter %s again: %s", self.directory, error.strerror)
            is_whole = False
        for step in (self._enter_directory, self._configure_logging):
            try:
                step()
            except CommandError as error:
                LOG.error("%s; nothing of it changes", error)
                is_whole = False
        # A link that moved within the resolution of a file system's clock is no change to these.
        sys.path_importer_cache.clear()
        importlib.invalidate_caches()
        return is_whole

    def set_arguments(self, program: str) -> None:
        """Give the application a command line of its own."""
        sys.argv = [program, *self._options.pyargv]

    def _enter_directory(self) -> None:
        options = self._options
        directory = self.directory
        if options.chdir is not None:
            directory = os.path.join(directory, options.chdir)
            try:
                os.chdir(directory)
            except OSError as error:
                raise CommandError(f"--chdir {options.chdir}: {error.strerror}") from error
        entries = [entry for entry in (options.pythonpath or "").split(",") if entry]
        for entry in (directory, *(os.path.join(directory, entry) for entry in entries)):
            if entry not in sys.path:
                sys.path.insert(0, entry)

    def _configure_logging(self) -> None:
        options = self._options
        if options.log_config is None:
            logging.basicConfig(level=options.log_level.upper(), format=LOG_FORMAT)
            return
        if not Path(options.log_config).is_file():
            raise CommandError(f"--log-config {options.log_config}: no such file")
        try:
            logging.config.fileConfig(options.log_config, disable_existing_loggers=False)
        except Exception as error:
            raise CommandError(
                f"--log-config {options.log_config}: {in_one_line(error)}"
            ) from error


def _enter_venv(directory: str) -> None:
    """Have modules found in a virtual environment, before all others.

    :raises CommandError: there is none, or it is of another Python.
    """
    if os.path.realpath(directory) == os.path.realpath(sys.prefix):
        return
    if os.path.exists(os.path.join(directory, "bin", "osloxide")):
        # Its own osloxide, with what the application was tested with.
        python = os.path.join(directory, "bin", "python")
        try:
            os.execv(python, [python, *sys.orig_argv[1:]])  # noqa: S606 - the same command there
        except OSError as error:
            raise CommandError(f"--venv {directory}: {python}: {error.strerror}") from error
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = os.path.join(directory, "lib", version, "site-packages")
    if not os.path.isdir(packages):
        raise CommandError(
            f"--venv {directory}: has no lib/{version}/site-packages; name a virtual "
            f"environment of Python {version.removeprefix('python')}, or install osloxide in it"
        )
    before = list(sys.path)
    site.addsitedir(packages)
    added = [entry for entry in sys.path if entry not in before]
    sys.path[:] = added + before
    # Where applications look for what was installed beside them, such as etc/nova/api-paste.ini.
    sys.prefix = sys.exec_prefix = directory
    os.environ["VIRTUAL_ENV"] = directory


def _working_directory() -> str:
    """Where this process was started, with its symbolic links where the shell tells of them.

    :raises CommandError: that directory is gone, or above it is one that may not be read.
    """
    try:
        physical = os.getcwd()
    except OSError as error:
        raise CommandError(
            f"the working directory cannot be named: {error.strerror}; change to one that is there "
            "(--chdir is taken from the working directory on)"
        ) from None
    logical = os.environ.get("PWD", "")
    try:
        if os.path.isabs(logical) and os.path.samefile(logical, physical):
            return logical
    except OSError:
        pass
    return physical
