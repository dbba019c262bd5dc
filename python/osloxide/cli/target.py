"""Which program a command names, and which Python will run it.

Owns the search on PATH and the reading of ``#!`` lines as the kernel, env(1), pip's long-path
scripts and those of environments that may be moved write them. It executes nothing except, in
:func:`verify`, the interpreter that it found.

Rules: execve(2) (interpreter scripts), env(1) (-S), the exit statuses 126 and 127 of POSIX sh.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osloxide.activation import import_hook, native_module
from osloxide.cli.errors import NOT_EXECUTABLE, NOT_FOUND, CommandError
from osloxide.exceptions import ActivationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PYTHON = re.compile(r"(python|pypy)[\d.]*[dt]*$")
_OWN_DIRECTORY = re.compile(
    r"""\$\(dirname\ (?:--\ )?(?P<outer>"?)
    (?: \$0 | (?P<real>\$\((?:realpath|readlink\ -f)\ (?:--\ )?(?P<inner>"?)\$0(?P=inner)\)) )
    (?P=outer)\)""",
    re.VERBOSE,
)
"""How the first lines of a script name the directory that it lies in: as uv has it, and others."""
_PROBE_TIMEOUT = 60.0
_PROBE = """
import sys
try:
    from osloxide.activation import import_hook, native_module
    from osloxide.exceptions import ActivationError
except ImportError as error:
    sys.exit(f"cannot import osloxide: {error}")
if not import_hook.is_installed():
    sys.exit("did not run osloxide's sitecustomize")
if fault := native_module.fault():
    sys.exit(fault)
try:
    import_hook.require_supported_version()
except ActivationError as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True)
class Target:
    """A program to be executed.

    :param path: the file, as execve(2) wants it.
    :param interpreter: the Python that will run it, or None when that cannot be told.
    :param flags: options for that interpreter which come before the script.
    :param is_script: the file is a Python script (and not the interpreter itself).
    """

    command: str
    path: str
    interpreter: str | None
    flags: tuple[str, ...]
    is_script: bool


def resolve(command: str, arguments: Sequence[str], environ: Mapping[str, str]) -> Target:
    """Find *command* as a shell would, and its interpreter as the kernel would.

    :param arguments: what follows the command; holds the options when it is ``python`` itself.
    :raises CommandError: it does not exist (127) or cannot be executed (126).
    """
    path = _find(command, environ)
    if _is_python(path):
        return Target(command, path, path, split_options(arguments)[0], is_script=False)
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        if not isinstance(error, PermissionError):
            raise CommandError(f"{path}: {error.strerror}", NOT_EXECUTABLE) from error
        head = b"\x7fELF"  # executable but not readable: legal, we just cannot look inside
    if not head.startswith(b"#!"):
        if not head.startswith(b"\x7fELF"):
            raise CommandError(
                f"{path} cannot be executed: it has no #! line; name its interpreter, for example "
                f"'osloxide run python3 {command}'",
                NOT_EXECUTABLE,
            )
        return Target(command, path, None, (), is_script=False)
    words = _shebang(path, head.decode("utf-8", "surrogateescape").splitlines(), environ)
    if not _is_python(words[0]):
        return Target(command, path, None, (), is_script=False)
    return Target(command, path, words[0], split_options(words[1:])[0], is_script=True)


def verify(target: Target, environ: Mapping[str, str]) -> None:
    """Make sure that *target* would run on osloxide, given the activated *environ*.

    :raises CommandError: it would run, but without osloxide.
    """
    if target.interpreter is None:
        return
    hidden = hiding_flag(target.flags)
    if hidden is not None:
        fault = "skips sitecustomize" if "S" in hidden else "ignores PYTHONPATH"
        remedy = f"leave {hidden} out"
        if target.is_script:
            remedy = f"start it with 'osloxide run {target.interpreter} {target.path}'"
        raise CommandError(
            f"{_subject(target, hidden)} {fault} and so would not load osloxide; {remedy}"
        )
    # Symbolic links are left alone: a virtual environment's python is a link to the system's. An
    # option may change what is found: -s hides what was installed for the user.
    same = os.path.abspath(target.interpreter) == os.path.abspath(sys.executable)
    if same and not target.flags and _is_installed():
        if fault := native_module.fault():
            raise CommandError(fault)
        try:
            import_hook.require_supported_version()
        except ActivationError as error:
            raise CommandError(str(error)) from error
        return
    # Only where it is needed: this command stands in front of every start.
    import subprocess

    try:
        probe = subprocess.run(  # noqa: S603 - the interpreter of the command that is to run
            [target.interpreter, *target.flags, "-c", _PROBE],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(
            f"{target.interpreter} did not start within {_PROBE_TIMEOUT:.0f} s; "
            "run it by hand to see why"
        ) from error
    except OSError as error:
        raise CommandError(
            f"{target.path} names the interpreter {target.interpreter}: {error.strerror}; "
            "correct its #! line or install that interpreter",
            NOT_EXECUTABLE,
        ) from error
    if probe.returncode != 0:
        last = probe.stderr.strip().rpartition("\n")[2] or f"exit status {probe.returncode}"
        reason = last if last.startswith(("cannot", "did not")) else f"said: {last}"
        if native_module.NAME not in reason:
            reason += (
                "; install osloxide and a supported oslo.service there, or start the service with "
                "an interpreter that has them"
            )
        raise CommandError(f"{_subject(target)} {reason}")


def _is_installed() -> bool:
    """Whether osloxide is where this interpreter looks at each of its starts.

    It may have been found otherwise: in the current directory (``-m``), in an archive (zipapp), by
    a loader that adds folders for its own program (PEX), or by a ``.pth`` file, which would do.
    """
    import site

    root = str(Path(os.path.abspath(__file__)).parents[2])
    places = site.getsitepackages()
    return root in ([*places, site.getusersitepackages()] if site.ENABLE_USER_SITE else places)


def hiding_flag(flags: Sequence[str]) -> str | None:
    """The interpreter option in *flags* that keeps sitecustomize from being found, if any."""
    for flag in flags:
        if re.match(r"-(?:(?![WXcm])[A-Za-z])*[IES]", flag):
            return flag
    return None


def _subject(target: Target, option: str = "") -> str:
    """The beginning of a sentence about the interpreter of *target*."""
    interpreter = f"{target.interpreter} {option}".rstrip()
    if target.is_script:
        return f"{target.path} runs on {interpreter}, which"
    return interpreter


def _find(command: str, environ: Mapping[str, str]) -> str:
    """Search PATH unless *command* is a path; tell "not found" from "not executable"."""
    if "/" in command:
        candidates = [command]
    else:
        path = environ.get("PATH", os.defpath)
        candidates = [os.path.join(entry or ".", command) for entry in path.split(os.pathsep)]
    found = None
    for candidate in candidates:
        if not os.path.exists(candidate):
            continue
        if _is_program(candidate):
            return candidate
        found = found or candidate
    if found is None:
        where, advice = " on PATH", "check the name, or give its full path"
        if "/" in command:
            where = ""
        # A unit or a container that names osloxide's own path often has no PATH of its environment.
        elif _is_program(beside := os.path.join(os.path.dirname(sys.executable), command)):
            advice = f"give {beside}"
        raise CommandError(f"{command}: command not found{where}; {advice}", NOT_FOUND)
    what = "is a directory" if os.path.isdir(found) else "is not executable"
    raise CommandError(f"{found} {what}; name a program that you may execute", NOT_EXECUTABLE)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_python(path: str) -> bool:
    return _PYTHON.match(os.path.basename(path)) is not None


def _shebang(path: str, lines: list[str], environ: Mapping[str, str]) -> list[str]:
    """The interpreter that a ``#!`` line ends up with, and the options that it gets."""
    words = lines[0].removeprefix("#!").split(maxsplit=1)
    if not words:
        raise CommandError(
            f"{path} cannot be executed: its #! line names no interpreter; correct that line",
            NOT_EXECUTABLE,
        )
    words = [word.strip() for word in words]
    name = os.path.basename(words[0])
    if name == "env" and len(words) == 2:
        return _through_env(path, words[1], environ)
    if name == "sh" and len(lines) > 1 and lines[1].startswith(("'''exec' ", '"exec" ')):
        # pip and distlib write this where the interpreter's path is too long for the kernel, uv
        # also where the environment may be moved.
        inner = shlex.split(_OWN_DIRECTORY.sub(lambda found: _own(path, found), lines[1]))[1:]
        return inner[: inner.index("$0")] if "$0" in inner else inner
    # The kernel passes everything after the interpreter as a single argument.
    return words


def _own(path: str, found: re.Match[str]) -> str:
    """The directory of the script *path*, as text between double quotes."""
    directory = os.path.dirname(os.path.realpath(path) if found["real"] else path) or "."
    return directory.replace("\\", r"\\").replace('"', r"\"")


def _through_env(path: str, rest: str, environ: Mapping[str, str]) -> list[str]:
    """What ``#!/usr/bin/env REST`` executes."""
    words = [rest]
    if rest.startswith("-"):
        option, _, value = rest.partition(" ")
        if option not in ("-S", "-vS", "--split-string"):
            raise CommandError(
                f"{path} starts through 'env {rest}', which changes the environment that osloxide "
                "needs; name its interpreter, for example 'osloxide run python3 " + path + "'"
            )
        words = shlex.split(value)
        while words and "=" in words[0]:
            words.pop(0)
    if not words:
        raise CommandError(
            f"{path} cannot be executed: env is given no interpreter; correct its #! line",
            NOT_EXECUTABLE,
        )
    return [_find(words[0], environ), *words[1:]]


def split_options(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The interpreter options at the start of *arguments*, and the rest: a script, -c or -m first.

    Letters that stand before that ``c`` or ``m`` in one word are an option of their own.
    """
    options: list[str] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        if found := re.match(r"-([A-VYZabd-ln-z]*)([cm])", rest[0]):
            if found[1]:
                options.append(f"-{found[1]}")
                rest[0] = f"-{rest[0][found.start(2) :]}"
            break
        word = rest.pop(0)
        if (re.fullmatch(r"-[A-Za-z]*[WX]", word) or word == "--check-hash-based-pycs") and rest:
            # "-X dev" and "-Xdev" mean the same.
            word += rest.pop(0)
        options.append(word)
    return tuple(options), rest


def main_module(target: Target, arguments: Sequence[str]) -> tuple[str, str]:
    """What *target*, called with *arguments*, runs as ``__main__``.

    :returns: ``"script"`` and a path, ``"module"`` and a name, or ``"code"`` and a source; twice
        ``""`` where none is named.
    """
    if target.is_script:
        return "script", os.path.abspath(target.path)
    _, rest = split_options(arguments)
    if rest[:1] == ["--"]:
        rest.pop(0)
    elif rest and rest[0].startswith(("-c", "-m")):
        word = rest[0][2:] or "".join(rest[1:2])
        return "code" if rest[0].startswith("-c") else "module", word
    if not rest or rest[0] == "-":
        return "", ""
    return "script", os.path.abspath(rest[0])
