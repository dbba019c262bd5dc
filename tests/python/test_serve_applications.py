"""``osloxide serve`` loads real applications: arguments, scripts, paste, failures at import."""

from __future__ import annotations

import errno
import fcntl
import os
import py_compile
import re
import signal
import socket
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.serving import OSLOXIDE, Running, fetch, starter
from waiting import DEADLINE

from osloxide._native import Scoreboard
from osloxide.cli import operator_signals, ready
from osloxide.cli.application import Application
from osloxide.cli.errors import CommandError
from osloxide.cli.site import is_taken
from osloxide.launch import launcher_index

ARGUMENTS = """
import os, sys

arguments = list(sys.argv)

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr((arguments, __name__, os.getcwd())).encode()]

other = application
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "told.py").write_text(ARGUMENTS)
    with starter(tmp_path) as begin:
        yield begin


def words(port: int) -> str:
    return " ".join(fetch(port))


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("preload", [[], ["--preload"]])
@pytest.mark.parametrize(
    "given", [["--pyargv", "--config-file 'a b'"], ["--", "--config-file", "a b"]]
)
def test_an_application_sees_its_own_arguments(
    start: Callable[..., Running], workers: str, preload: list[str], given: list[str]
) -> None:
    site = start("serve", "told", "-b", "127.0.0.1:0", "-w", workers, *preload, *given)

    assert words(site.port()).startswith("(['told', '--config-file', 'a b'], 'told',")
    assert site.stop() == 0, site.log


def test_a_module_in_a_directory_without_init_is_found_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As magnum.wsgi.api is: a regular package around a namespace package (PEP 420).
    package = f"outer{os.getpid()}"
    deep = tmp_path / package / "inner" / "deeper"
    deep.mkdir(parents=True)
    (tmp_path / package / "__init__.py").touch()
    for directory in (deep.parent, deep):
        (directory / "api.py").write_text("def application(environ, start_response): ...\n")
    monkeypatch.syspath_prepend(tmp_path)

    for name in (f"{package}.inner.api", f"{package}.inner.deeper.api:application"):
        Application.parse(name).check()
    assert package not in sys.modules
    for name in (f"{package}.inner.absent", f"{package}.inner.deeper.absent"):
        with pytest.raises(CommandError, match="cannot find module"):
            Application.parse(name).check()
    assert Application.parse(f"{package}.inner.deeper.api").load() is not None


@pytest.mark.parametrize("blames", ["outer", "other"])
def test_a_finder_that_wants_the_package_imported_is_not_the_end_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blames: str
) -> None:
    # CPython 3.15 raises this where older releases raise KeyError.
    class Finder:
        @staticmethod
        def find_spec(name: str, path: list[str] | None, target: object = None) -> None:
            if path and str(tmp_path) in path[0]:
                raise ModuleNotFoundError(f"{blames!r} must be imported", name=blames)

    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])

    if blames == "outer":
        Application.parse("outer.inner").check()
    else:
        with pytest.raises(CommandError, match="'other' must be imported"):
            Application.parse("outer.inner").check()


def test_without_arguments_there_is_a_program_name_alone(start: Callable[..., Running]) -> None:
    site = start("serve", "told", "-b", "127.0.0.1:0", "--name", "compute")

    assert words(site.port()).startswith("(['compute'],")
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("name", ["nova-api-wsgi", "script.py", "app.wsgi"])
@pytest.mark.parametrize("attribute", ["", ":application", ":other"])
def test_a_script_is_loaded_and_is_not_main(
    start: Callable[..., Running], tmp_path: Path, name: str, attribute: str
) -> None:
    script = tmp_path / "bin" / name
    script.parent.mkdir()
    script.write_text("#!/usr/bin/python3\nassert __name__ != '__main__'\n" + ARGUMENTS)

    site = start("serve", f"{script}{attribute}", "-b", "127.0.0.1:0", "--", "--debug")

    assert words(site.port()).startswith(f"(['{name}', '--debug'], 'wsgi_file_")
    assert site.stop() == 0, site.log
    assert [entry.name for entry in script.parent.iterdir()] == [name]  # no bytecode beside it


@pytest.mark.parametrize(("fragment", "answer"), [("", "main"), ("#second", "second")])
def test_a_paste_configuration_is_loaded(
    start: Callable[..., Running], tmp_path: Path, fragment: str, answer: str
) -> None:
    (tmp_path / "pasted.py").write_text(
        "def factory(global_conf, text):\n"
        "    def application(environ, start_response):\n"
        "        start_response('200 OK', [])\n"
        "        return [text.encode()]\n"
        "    return application\n"
    )
    (tmp_path / "api-paste.ini").write_text(
        "[app:main]\npaste.app_factory = pasted:factory\ntext = main\n"
        "[app:second]\npaste.app_factory = pasted:factory\ntext = second\n"
    )

    site = start("serve", f"config:api-paste.ini{fragment}", "-b", "127.0.0.1:0")

    assert fetch(site.port()) == [answer]
    assert site.stop() == 0, site.log


PATCHING = """
import threading
import eventlet
eventlet.monkey_patch()

def application(environ, start_response):
    pool, names = eventlet.GreenPool(), []
    for number in range(3):
        pool.spawn(lambda n: (eventlet.sleep(0.01 * n), names.append(str(n))), number)
    pool.waitall()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{eventlet.__file__} {''.join(names)}".encode()]
"""


@pytest.mark.parametrize("options", [[], ["-w", "2"], ["-w", "2", "--preload"]])
def test_an_application_that_monkey_patches_is_served_where_the_operator_asks_for_it(
    start: Callable[..., Running], tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "patching.py").write_text(PATCHING)
    site = start("serve", "patching", "-b", "127.0.0.1:0", *options, OSLOXIDE_EVENTLET="native")

    answer = words(site.port())
    assert "osloxide/green/__init__.py" in answer, site.log
    assert answer.endswith("012")
    assert site.stop() == 0, site.log


def test_another_word_for_who_serves_eventlet_is_refused(tmp_path: Path) -> None:
    result = run_command(
        [*OSLOXIDE, "serve", "told", "-b", "127.0.0.1:0"],
        environ=environment(OSLOXIDE_EVENTLET="nativ"),
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "OSLOXIDE_EVENTLET is 'nativ'" in result.stderr


FAILURES = {
    "exits": ("import sys; sys.exit(2)", "ended itself with sys.exit(2) at"),
    "exits_quietly": ("raise SystemExit", "ended itself with sys.exit(None)"),
    "parses": ("import argparse; argparse.ArgumentParser().parse_args(['-x'])", "sys.exit(2)"),
    "raises": ("raise LookupError('no database')", "LookupError: no database"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "odd": ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
    "typo": ("def application(:", "SyntaxError"),
    "missing": ("import not_there_at_all", "No module named 'not_there_at_all'"),
    "empty": ("", "no attribute 'application'"),
    "number": ("application = 3", "which cannot be called"),
    "asgi": ("async def application(scope, receive, send): ...", "is an ASGI application"),
    "asgi_object": (
        "class App:\n async def __call__(self, scope, receive, send): ...\napplication = App()",
        "is an ASGI application",
    ),
}


@pytest.mark.parametrize("options", [[], ["--master"], ["-w", "3"], ["-w", "2", "--preload"]])
@pytest.mark.parametrize("kind", FAILURES)
def test_an_application_that_cannot_be_loaded_is_reported_once_and_ends_the_command(
    tmp_path: Path, kind: str, options: list[str]
) -> None:
    code, error = FAILURES[kind]
    if kind in ("empty", "number", "interrupts", "asgi", "asgi_object") and "--preload" in options:
        pytest.skip("refused as a wrong argument, or by the user: test_wrong_arguments_are_refused")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "broken.py").write_text(code + "\n")

    result = run_command(
        [*OSLOXIDE, "serve", "package.broken", "-b", "127.0.0.1:0", *options],
        environ=environment(),
        cwd=tmp_path,
    )

    assert result.returncode == 3, result.stderr
    assert error in result.stderr
    reports = result.stderr.count("cannot load package.broken") + (
        kind in ("empty", "number", "asgi", "asgi_object")
    )
    assert reports == 1, result.stderr


def test_a_package_that_exits_is_an_application_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise SystemExit(7)\n")
    (tmp_path / "package" / "inner.py").write_text("application = print\n")

    result = run_command(
        [*OSLOXIDE, "serve", "package.inner", "-b", "127.0.0.1:0", "-w", "2"],
        environ=environment(),
        cwd=tmp_path,
    )

    assert result.returncode == 3, result.stderr
    assert result.stderr.count("ended itself with sys.exit(7)") == 1


@pytest.mark.parametrize("options", [[], ["--master"], ["-w", "2"]])
def test_a_stop_during_the_import_leaves_at_once(
    start: Callable[..., Running], tmp_path: Path, options: list[str]
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "slow.py").write_text(
        f"import time\nopen({str(fifo)!r}).read()\nwhile True: time.sleep(0.05)\n"
    )
    pid = tmp_path / "pid"
    site = start("serve", "slow", "-b", "127.0.0.1:0", "--pid", str(pid), *options)
    port = site.port()
    os.close(os.open(fifo, os.O_WRONLY))  # returns when the import has begun

    assert site.stop() == 0, site.log
    assert not pid.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def pid_of(port: int) -> int:
    return int(fetch(port)[0])


VERSIONED = """
import os
def application(environ, start_response):
    start_response("200 OK", [])
    return [f"{os.getpid()} %s {os.getppid()}".encode()]
"""


@pytest.mark.parametrize("options", [[], ["--master"], ["-w", "2"]])
def test_a_hangup_loads_new_code_from_where_a_link_points_now(
    start: Callable[..., Running], tmp_path: Path, options: list[str]
) -> None:
    for name in ("one", "second"):
        package = tmp_path / name / "versioned"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "wsgi.py").write_text(VERSIONED % name)
    current = tmp_path / "current"
    current.symlink_to("one")
    site = start("serve", "versioned.wsgi", "-b", "127.0.0.1:0", "--chdir", "current", *options)
    port = site.port()
    assert fetch(port)[1] == "one"

    (tmp_path / "next").symlink_to("second")
    (tmp_path / "next").rename(current)
    site.process.send_signal(signal.SIGHUP)

    wait_until(lambda: fetch(port)[1] == "second", f"the new code\n{site.log}", 60)
    assert site.process.poll() is None
    if options == ["--master"]:
        (tmp_path / "second" / "versioned" / "wsgi.py").write_text("import missing_here")
        site.process.send_signal(signal.SIGHUP)
        wait_until(lambda: site.log.count("cannot load") >= 3, f"three failures\n{site.log}")
        assert fetch(port)[1] == "second", "the only worker serves on"
    (tmp_path / "second" / "versioned" / "wsgi.py").write_text(VERSIONED % "the_third")
    site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: fetch(port)[1] == "the_third", f"the newer code\n{site.log}", 60)
    assert site.stop() == 0, site.log


def test_only_what_another_process_may_have_makes_room_for_code_that_fails() -> None:
    def came_of(failure: OSError) -> BaseException:
        try:
            try:
                raise failure
            except OSError as error:
                raise RuntimeError("metrics cannot be served") from error
        except RuntimeError as error:
            return error

    assert is_taken(came_of(OSError(errno.EADDRINUSE, "")))
    assert is_taken(BlockingIOError(errno.EAGAIN, "a lock"))
    assert not is_taken(came_of(OSError(errno.ENOENT, "")))
    assert not is_taken(ImportError())


def test_a_hangup_without_a_parent_keeps_the_process_and_loses_no_connection(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "versioned.py").write_text(VERSIONED % "one")
    site = start("serve", "versioned", "-b", "127.0.0.1:0", "--pid", str(tmp_path / "pid"))
    port = site.port()
    assert pid_of(port) == site.pid
    for round_ in range(3):
        (tmp_path / "versioned.py").write_text(VERSIONED % f"round{round_}")
        site.process.send_signal(signal.SIGHUP)
        wait_until(lambda text=f"round{round_}": fetch(port)[1] == text, "the new code", 60)
        assert pid_of(port) == site.pid
        assert (tmp_path / "pid").read_text() == f"{site.pid}\n"

    assert site.stop() == 0, site.log
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("options", [[], ["--master"]])
def test_a_hangup_reads_the_logging_configuration_again(
    start: Callable[..., Running], tmp_path: Path, options: list[str]
) -> None:
    config = """
[loggers]
keys=root
[handlers]
keys=file
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=file
[handler_file]
class=FileHandler
formatter=plain
args=({path!r},)
[formatter_plain]
format=%(message)s
"""
    (tmp_path / "log.ini").write_text(config.format(path=str(tmp_path / "first.log")))
    site = start("serve", "told", "-b", "127.0.0.1:0", "--log-config", "log.ini", *options)
    wait_until(lambda: (tmp_path / "first.log").exists(), "the first log")
    pattern = "listening on 127.0.0.1:"
    wait_until(lambda: pattern in (tmp_path / "first.log").read_text(), "listening")
    text = (tmp_path / "first.log").read_text()
    port = int(text[text.index(pattern) + len(pattern) :].split()[0])
    assert fetch(port)

    (tmp_path / "log.ini").write_text(config.format(path=str(tmp_path / "second.log")))
    site.process.send_signal(signal.SIGHUP)

    def logged() -> bool:
        fetch(port)
        second = tmp_path / "second.log"
        return second.exists() and "GET / HTTP/1.1" in second.read_text()

    wait_until(logged, "the second log", 60)
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("options", [[], ["-w", "2"]])
def test_usr1_opens_the_log_files_again(
    start: Callable[..., Running], tmp_path: Path, options: list[str]
) -> None:
    log = tmp_path / "access.log"
    (tmp_path / "logs.py").write_text(
        "import logging\n"
        f"handler = logging.FileHandler({str(log)!r})\n"
        "logging.getLogger('osloxide.access').addHandler(handler)\n"
        "from told import application\n"
    )
    site = start("serve", "logs", "-b", "127.0.0.1:0", *options)
    port = site.port()
    fetch(port)
    wait_until(lambda: "GET" in log.read_text(), "the access log")
    log.rename(tmp_path / "rotated.log")

    site.process.send_signal(signal.SIGUSR1)

    def logged() -> bool:
        fetch(port)
        return log.exists() and "GET" in log.read_text()

    wait_until(logged, "the new file")
    assert site.stop() == 0, site.log


def test_log_files_are_opened_again_in_the_middle_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits, for the reader of the old file, goes on in the new one."""
    log = tmp_path / "log"
    read_end, write_end = os.pipe()
    stream = os.fdopen(write_end, "w")
    monkeypatch.setattr(sys, "__stdout__", stream)
    monkeypatch.setattr(sys, "__stderr__", None)
    room = fcntl.fcntl(read_end, fcntl.F_GETPIPE_SZ)
    main = threading.get_ident()
    is_written = threading.Event()

    def queued() -> int:
        return struct.unpack("i", fcntl.ioctl(read_end, termios.FIONREAD, bytes(4)))[0]

    def signal_when_it_waits() -> None:
        try:
            wait_until(lambda: queued() == room, "a full pipe")
            signal.pthread_kill(main, signal.SIGUSR1)
            is_written.wait(DEADLINE)
        finally:
            os.close(read_end)  # ends a write that still waits there, with an error

    earlier = signal.signal(signal.SIGUSR1, lambda *_: operator_signals.reopen_logs(str(log)))
    thread = threading.Thread(target=signal_when_it_waits)
    try:
        thread.start()
        stream.write("x" * 4 * room)
        stream.flush()
    finally:
        is_written.set()
        thread.join()
        signal.signal(signal.SIGUSR1, earlier)
        stream.close()

    assert len(log.read_text()) == 3 * room


@pytest.mark.parametrize(
    ("signo", "options"),
    [
        (signal.SIGTTIN, []),
        (signal.SIGTTOU, []),
        (signal.SIGUSR2, []),
        (signal.SIGUSR2, ["-w", "2"]),
    ],
)
def test_signals_of_other_servers_end_and_stop_nothing(
    start: Callable[..., Running], signo: signal.Signals, options: list[str]
) -> None:
    site = start("serve", "told", "-b", "127.0.0.1:0", *options)
    port = site.port()
    fetch(port)

    site.process.send_signal(signo)

    wait_until(lambda: f"{signo.name} does nothing here" in site.log, "the warning")
    assert fetch(port)
    assert site.stop() == 0, site.log


@pytest.mark.parametrize(
    "variables",
    [
        {"OSLOXIDE_SERVE_CERTFILE": "", "OSLOXIDE_SERVE_WORKERS": "", "OSLOXIDE_SERVE_BIND": " "},
        {"OSLOXIDE_SERVE_TIMEOUT": "", "OSLOXIDE_SERVE_UMASK": "", "OSLOXIDE_SERVE_LOG_LEVEL": ""},
        {"OSLOXIDE_SERVE_NOT_AN_OPTION": ""},
        {
            "OSLOXIDE_SERVE_PORT": "tcp://10.0.0.1:8774",
            "OSLOXIDE_SERVE_SERVICE_HOST": "10.0.0.1",
            "OSLOXIDE_SERVE_SERVICE_PORT": "8774",
            "OSLOXIDE_SERVE_SERVICE_PORT_API": "8774",
            "OSLOXIDE_SERVE_PORT_8774_TCP": "tcp://10.0.0.1:8774",
            "OSLOXIDE_SERVE_PORT_8774_TCP_PROTO": "tcp",
            "OSLOXIDE_SERVE_PORT_8774_TCP_PORT": "8774",
            "OSLOXIDE_SERVE_PORT_8774_TCP_ADDR": "10.0.0.1",
            "OSLOXIDE_SERVE_PUBLIC_SERVICE_HOST": "10.0.0.1",
        },
    ],
)
def test_variables_that_are_blank_or_of_kubernetes_are_not_options(
    start: Callable[..., Running], variables: dict[str, str]
) -> None:
    arguments = ["-b", "127.0.0.1:0"]
    site = start("serve", "told", *arguments, **variables)

    assert fetch(site.port())
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("options", [[], ["--master"]])
def test_a_hangup_while_the_command_starts_is_a_reload(
    start: Callable[..., Running], options: list[str]
) -> None:
    site = start("serve", "told", "-b", "127.0.0.1:0", *options)
    port = site.port()
    site.process.send_signal(signal.SIGHUP)  # as soon as it listens

    assert fetch(port)
    wait_until(lambda: "SIGHUP" in site.log, "the signal in the log")
    assert fetch(port)
    assert site.stop() == 0, site.log


def test_what_one_of_the_first_workers_cannot_load_ends_no_other(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    taken, gate = tmp_path / "taken", tmp_path / "gate"
    (tmp_path / "turns.py").write_text(
        f"import os, time\n"
        f"try:\n    os.close(os.open({str(taken)!r}, os.O_CREAT | os.O_EXCL))\n"
        f"except FileExistsError:\n    while not os.path.exists({str(gate)!r}):\n"
        "        time.sleep(0.01)\n"
        "else:\n    raise RuntimeError('the database is locked')\n"
        "from told import application\n"
    )
    site = start("serve", "turns", "-b", "127.0.0.1:0", "-w", "2")
    wait_until(lambda: "the database is locked" in site.log, "the first report")

    assert site.process.poll() is None
    gate.touch()

    assert "turns" in words(site.port())
    wait_until(lambda: len(site.running(2)) == 2, "the other one is tried again")
    assert site.log.count("Traceback") == 1
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("options", [[], ["-w", "2"]])
def test_the_probe_tells_whether_every_slot_has_a_ready_worker(
    start: Callable[..., Running], tmp_path: Path, options: list[str]
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "late.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\n"
        "from told import application\n"
    )
    name = f"probe-{os.getpid()}"

    def probe(*arguments: str) -> int:
        done = run_command([*OSLOXIDE, "status", *arguments], environ=environment())
        assert done.stdout == ""
        return done.returncode

    assert probe("--ready", name) == 1  # nothing is called so
    site = start("serve", "late", "-b", "127.0.0.1:0", "--name", name, *options)
    wait_until(lambda: run_status(name) == 0, "the launcher")
    assert probe("--ready", name) == 1  # it still loads the application
    gate.touch()

    wait_until(lambda: probe("--ready", name) == 0, "every worker is ready")
    assert probe("--ready", str(site.pid)) == 0
    assert run_status(name) == 0
    assert site.stop() == 0, site.log
    assert probe("--ready", name) == 1


@pytest.mark.parametrize("options", [["-w", "3"], ["--master"], []])
def test_the_probe_reads_what_status_reads(
    start: Callable[..., Running], options: list[str]
) -> None:
    name = f"read-{os.getpid()}"
    site = start("serve", "told", "-b", "127.0.0.1:0", "--name", name, *options)
    assert fetch(site.port())
    wait_until(lambda: ready.main([name]) == 0, "every worker is ready")

    board = Scoreboard.attach(site.pid)
    read = ready._boards(name)

    assert read == {site.pid: [(row["slot"], row["state"]) for row in board.read()]}
    assert ready._boards(str(site.pid)) == read
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("options", [["-w", "2"], []])
def test_the_probe_finds_a_launcher_by_the_index_alone(
    start: Callable[..., Running], options: list[str]
) -> None:
    name = f"a/index {os.getpid()}.x"
    site = start("serve", "told", "-b", "127.0.0.1:0", "--name", name, *options)
    assert fetch(site.port())
    wait_until(lambda: ready.main([name]) == 0, "every worker is ready")

    assert ready._indexed(name.encode()) == ready._boards(str(site.pid))
    entries = launcher_entries(site.pid)
    assert len(entries) == 1
    assert site.stop() == 0, site.log
    assert launcher_entries(site.pid) == []
    assert ready.main([name]) == 1


def test_an_index_that_is_wrong_or_missing_hides_no_launcher(
    start: Callable[..., Running],
) -> None:
    name = f"hidden-{os.getpid()}"
    site = start("serve", "told", "-b", "127.0.0.1:0", "--name", name, "-w", "2")
    assert fetch(site.port())
    wait_until(lambda: ready.main([name]) == 0, "every worker is ready")
    (entry,) = launcher_entries(site.pid)

    # What a killed launcher leaves, with the number of a process that is none; then nothing at all.
    forged = entry.with_name(os.fsdecode(launcher_index.entry(os.getpid(), 0, name)))
    entry.rename(forged)
    assert ready._indexed(name.encode()) == {}
    assert ready.main([name]) == 0
    forged.unlink()
    assert ready.main([name]) == 0

    killed = start("serve", "told", "-b", "127.0.0.1:0", "--name", f"killed-{name}", "-w", "1")
    assert fetch(killed.port())
    wait_until(lambda: launcher_entries(killed.pid) != [], "its entry")
    killed.process.kill()
    # Not reaped yet: a launcher of another test removes entries of processes that are gone.
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    assert launcher_entries(killed.pid) != []
    killed.process.wait(60)
    following = start("serve", "told", "-b", "127.0.0.1:0", "--name", f"next-{name}")
    wait_until(lambda: launcher_entries(killed.pid) == [], "the next launcher removes it")
    assert fetch(following.port())
    assert (following.stop(), site.stop()) == (0, 0), site.log


def test_what_other_users_put_beside_the_index_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    monkeypatch.setattr(ready, "_INDEXES", os.fsencode(tmp_path))
    made = Scoreboard("forged")
    entry = launcher_index.entry(os.getpid(), made.fileno(), "forged")
    os.mkdir(os.fsencode(tmp_path) + b"/osloxide-\xff-" + namespace.encode())
    open_to_all = tmp_path / f"osloxide-0-{namespace}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / os.fsdecode(entry)).touch()
    link = tmp_path / f"osloxide-1-{namespace}"
    link.symlink_to(open_to_all)

    assert ready._indexed(b"forged") == {}
    open_to_all.chmod(0o700)
    assert list(ready._indexed(b"forged")) == [os.getpid()]
    assert ready.main([f"absent-{os.getpid()}"]) == 1
    assert "no launcher" in capfd.readouterr().err


def test_entries_follow_a_process_that_becomes_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_root, of_user = tmp_path / "root", tmp_path / "user"
    of_root.mkdir()
    of_user.mkdir()
    monkeypatch.setattr(launcher_index, "_own", {})
    monkeypatch.setattr(launcher_index.atexit, "register", lambda function: function)
    monkeypatch.setattr(launcher_index, "_ROOT", str(of_root))
    launcher_index.enter("site", 7)

    with launcher_index.another_user():
        assert list(of_root.iterdir()) == []
        monkeypatch.setattr(launcher_index, "_ROOT", str(of_user))

    (directory,) = of_user.iterdir()
    assert [path.name for path in directory.iterdir()] == [f"{os.getpid()}.7.site"]
    launcher_index._leave()
    assert list(of_user.iterdir()) == []


def test_the_last_launcher_takes_the_directory_of_the_index_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_index, "_ROOT", str(tmp_path))
    monkeypatch.setattr(launcher_index, "_own", {})
    monkeypatch.setattr(launcher_index.atexit, "register", lambda function: function)

    launcher_index.enter("site", 7)
    (directory,) = tmp_path.iterdir()
    assert [path.name for path in directory.iterdir()] == [f"{os.getpid()}.7.site"]
    other = directory / "1.7.site"
    other.touch()
    launcher_index._leave()
    assert list(directory.iterdir()) == [other]

    launcher_index.enter("site", 7)
    other.unlink()
    launcher_index._leave()
    assert list(tmp_path.iterdir()) == []

    directory.symlink_to(tmp_path)  # another user's trick
    launcher_index.enter("site", 7)
    assert list(tmp_path.iterdir()) == [directory]


def launcher_entries(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"osloxide-{os.geteuid()}-*/{pid}.*"))


def test_the_printed_probe_needs_less_than_10_mib_and_no_module_of_osloxide(tmp_path: Path) -> None:
    # The same program, compiled as it is where osloxide is installed (compiling takes more memory
    # than running it), which says at its end what it has imported and used.
    compiled = py_compile.compile(ready.__file__, str(tmp_path / "ready.pyc"))
    told = f"""
import marshal, sys
sys.argv = [{ready.__file__!r}, "x"]
before = set(sys.modules)
try:
    exec(marshal.loads(open({compiled!r}, "rb").read()[16:]), {{"__name__": "__main__"}})
except SystemExit as end:
    print(end.code, sorted(set(sys.modules) - before))
print(open("/proc/self/status").read())
"""
    program = tmp_path / "told.py"
    program.write_text(told)
    done = run_command([*ready.command("x")[:2], str(program)], environ=environment())

    assert done.stdout.startswith("1 []\n"), done.stdout + done.stderr
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert int(peak) <= 10 * 1024


def test_the_printed_probe_is_compiled_and_never_from_another_source(tmp_path: Path) -> None:
    package = tmp_path / "osloxide"
    (package / "cli").mkdir(parents=True)
    source = package / "cli" / "ready.py"
    source.write_text(Path(ready.__file__).read_text())
    (package / "__init__.py").touch()
    (package / "cli" / "__init__.py").touch()
    program = "from osloxide.cli import ready; print(*ready.command('x'))"

    def printed(**variables: str) -> str:
        environ = {**environment(), "PYTHONPATH": str(tmp_path), **variables}
        command = [sys.executable, "-S", "-c", program]
        name: str = run_command(command, environ=environ).stdout.split()[2]
        return name

    plain = {"PYTHONDONTWRITEBYTECODE": "1"}
    assert printed(**plain) == str(source)
    compiled = py_compile.compile(str(source))
    assert printed(**plain) == compiled
    probe = [sys.executable, "-IS", str(compiled), "absent"]
    assert run_command(probe, environ=environment()).returncode == 1
    source.write_text(source.read_text() + "# a new release\n")
    assert printed(**plain) == str(source)


def test_the_probe_of_the_command_imports_neither_argparse_nor_what_takes_long() -> None:
    program = (
        "import sys; before = set(sys.modules); from osloxide.cli import main; "
        "status = main(['status', '--ready', 'absent']); "
        "print(status, *sorted(set(sys.modules) - before))"
    )
    done = run_command(
        [sys.executable, "-IS", "-c", f"import sys; sys.path = {sys.path}; {program}"]
    )
    status, *imported = done.stdout.split()

    assert status == "1", done.stderr
    heavy = {"argparse", "typing", "pathlib", "re", "enum", "contextlib", "dataclasses",
             "importlib.util", "collections", "functools", "osloxide.activation"}  # fmt: skip
    assert not heavy & set(imported)
    assert not [name for name in imported if name.startswith(("oslo_", "osloxide._native"))]


def run_status(name: str) -> int:
    return run_command([*OSLOXIDE, "status", name], environ=environment()).returncode
