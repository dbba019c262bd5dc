"""``osloxide uwsgi``: what uWSGI starts from a command line and its files, started by osloxide.

Owns uWSGI's own command line, and what is printed of a translation. The language is
osloxide.cli.uwsgi.reader's, the options are osloxide.cli.uwsgi.options', and what runs in the end
is ``osloxide serve`` with the command line that osloxide.cli.uwsgi.translation made.

Rules: uWSGI 2.0's getopt_long(3) use: options first, then files, wherever they stand; letters
together (``-Mp 4``), and names that are cut short where only one option begins so. Variables
``UWSGI_*`` come before both.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from osloxide.cli import serve, serve_options
from osloxide.cli.errors import CommandError
from osloxide.cli.uwsgi import formats, options
from osloxide.cli.uwsgi.options import Kind
from osloxide.cli.uwsgi.reader import COMMAND_LINE, VERSION, Reader, is_condition, is_end
from osloxide.cli.uwsgi.translation import Row, Translation, unknown
from osloxide.server.numbers import whole_number

_USAGE = """\
usage: osloxide uwsgi [OPTION ...] [FILE[:SECTION] ...]
       osloxide uwsgi --warm [OPTION ...] [FILE ...]
       osloxide uwsgi --explain [OPTION ...] [FILE ...]
       osloxide uwsgi --reload PIDFILE | --stop PIDFILE

Takes uWSGI's command line, its ini, yaml, json and xml files and UWSGI_* variables, and serves the
application that they name. --warm loads it once, in a process from which workers are forked,
whatever lazy-apps says. --explain prints what becomes of each option, and the osloxide serve
command that is equal. Options: docs/uwsgi.md.
"""

_WARM = "--warm"
"""An option of osloxide's own, as of ``osloxide serve``: uWSGI's language has no name for it."""

_SIGNALS = {"reload": signal.SIGHUP, "stop": signal.SIGTERM}
_LAST_PID = 2**31 - 1


def run(arguments: Sequence[str]) -> int:
    """Do what uWSGI would do with *arguments*; returns the exit status.

    :raises CommandError: an option is unknown or refused, or a file cannot be used.
    """
    reader = Reader()
    reader.add_environment(os.environ, _is_meant, options.NAMES)
    files: list[str] = []
    given: list[tuple[str, str]] = []
    own: list[str] = []
    wants_table = False
    words = iter(arguments)
    for word in words:
        if word in ("-h", "--help", "--usage"):
            print(_USAGE, end="")
            return 0
        if word == "--version":
            print(VERSION)
            return 0
        if word == "--":
            files += words
            break
        if word == "--explain":
            wants_table = True
            continue
        if word == _WARM:
            own = [word]
            continue
        if not word.startswith("-") or word == "-":
            files.append(word)
            continue
        for name, value in _options(word, words):
            if name in _SIGNALS:
                return _send(name, value)
            given.append((name, value))
    reader.add_command_line(given)
    for file in files:
        if formats.of_file(file) is None and formats.of_file(file.rpartition(":")[0]) is None:
            raise CommandError(
                f"{file}: no ini file; give it by --ini, or name the option it is for"
            )
        reader.read(file, COMMAND_LINE)
    if not reader.settings:
        raise CommandError("no option and no ini file was given; see osloxide uwsgi --help")
    reader.finish()
    translation = Translation.of(reader)
    if wants_table:
        return _explain(translation, own)
    return _serve(translation, reader, own)


def _is_meant(name: str) -> bool:
    """Whether ``UWSGI_NAME`` is meant for uWSGI; Kubernetes has such variables for a Service."""
    return name in options.NAMES or not serve_options.is_of_kubernetes(name)


def _options(word: str, rest: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Names and values of the options that *word* of the command line has."""
    if word.startswith("--"):
        name, equals, value = word.removeprefix("--").partition("=")
        if is_end(name):
            yield name, ""
            return
        if is_condition(name):
            yield name, value if equals else _next(f"--{name}", rest)
            return
        name = _whole(name)
        yield name, value if equals or not _takes_value(name) else _next(f"--{name}", rest)
        return
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in options.SHORT:
            raise CommandError(f"{COMMAND_LINE}: option -{letter} is unknown")
        name = options.SHORT[letter]
        kind = _kind(name)
        if kind is Kind.FLAG:
            yield name, ""
            continue
        # The rest of the word is the value; an optional one stands nowhere else.
        yield name, letters if letters or kind is Kind.OPTIONAL else _next(f"-{letter}", rest)
        return


def _whole(name: str) -> str:
    """The name of the option that *name* is, or the only one that begins so."""
    if options.find(name) is not None or name in _SIGNALS:
        return name
    longer = [it for it in (*options.BY_NAME, *_SIGNALS) if name and it.startswith(name)]
    meant = {it if it in _SIGNALS else options.BY_NAME[it].names[0] for it in longer}
    if len(meant) == 1:
        return longer[0]
    if longer:
        raise CommandError(
            f"{COMMAND_LINE}: option --{name} may be {', '.join(sorted(longer))}; write it out"
        )
    raise CommandError(f"{COMMAND_LINE}: option {name}: {unknown(name)}")


def _kind(name: str) -> Kind:
    option = options.find(name)
    return Kind.VALUE if option is None else option.kind


def _takes_value(name: str) -> bool:
    return _kind(name) is Kind.VALUE


def _next(option: str, rest: Iterator[str]) -> str:
    try:
        return next(rest)
    except StopIteration:
        raise CommandError(f"{COMMAND_LINE}: option {option} needs a value") from None


def _serve(translation: Translation, reader: Reader, own: list[str]) -> int:
    line = [*translation.command_line(), *own]
    if translation.open_files is not None:
        _limit_open_files(translation.open_files)
    parser = argparse.ArgumentParser(prog="osloxide uwsgi", usage=argparse.SUPPRESS)
    serve_options.declare(parser)
    chosen = parser.parse_args(line)
    # Files of uWSGI name options that have no effect beside others, as uWSGI lets them.
    chosen.set_by_config = frozenset(vars(chosen))
    chosen.uwsgi_option = [(it.name, it.value) for it in reader.settings]
    return serve.main(chosen)


def _limit_open_files(most: int) -> None:
    """Set the limit of open files of this process and its workers.

    :raises CommandError: it is above the hard limit, which only root may raise.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_above = hard != resource.RLIM_INFINITY and most > hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most if is_above else hard))
    except (OSError, ValueError) as error:
        raise CommandError(
            f"max-fd = {most}: the limit is {hard}; set LimitNOFILE= in the service unit"
        ) from error


def _explain(translation: Translation, own: list[str]) -> int:
    """Print the table and the equal command; 1 when something is refused."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Bytes of files that are no text of the locale leave as they came.
        sys.stdout.reconfigure(errors="surrogateescape")
    rows = translation.rows
    source = max((len(row.setting.source) for row in rows), default=0)
    name = max((len(_shown(row)) for row in rows), default=0)
    print(f"{'WHERE':{source}}  {'OPTION':{name}}  {'OSLOXIDE':8}  WHAT IT DOES")
    for row in rows:
        print(f"{row.setting.source:{source}}  {_shown(row):{name}}  {row.verdict:8}  {row.text}")
    print()
    print(shlex.join(["osloxide", "serve", *translation.command_line(is_complete=False), *own]))
    return 1 if translation.problems else 0


def _shown(row: Row) -> str:
    text = f"{row.setting.name} = {row.setting.value}" if row.setting.value else row.setting.name
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _send(name: str, path: str) -> int:
    """Send a signal to the process that a pid file names.

    :raises CommandError: there is no such file or process, or it is no launcher of osloxide.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise CommandError(f"--{name} {path}: {error.strerror}; is the service running?") from error
    pid = whole_number(text, _LAST_PID)
    if not pid:
        raise CommandError(f"--{name} {path}: holds {text[:40]!r}, which is no process id")
    if not _is_launcher(pid):
        raise CommandError(
            f"--{name} {path}: process {pid} is no service of osloxide; the file is an old one"
        )
    try:
        os.kill(pid, _SIGNALS[name])
    except PermissionError as error:
        raise CommandError(
            f"--{name} {path}: process {pid} belongs to another user; run this as that user"
        ) from error
    except ProcessLookupError as error:
        raise CommandError(f"--{name} {path}: process {pid} has ended") from error
    return 0


def _is_launcher(pid: int) -> bool:
    """Whether *pid* has a scoreboard; True where this user may not look."""
    try:
        descriptors = list(os.scandir(f"/proc/{pid}/fd"))
    except PermissionError:
        return True
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(descriptor.path).startswith("/memfd:osloxide-scoreboard"):
                return True
        except OSError:
            continue
    return False
