"""The language of uWSGI, its options, and what is refused: files, table, page and code agree."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.serving import OSLOXIDE, Running, fetch, starter
from waiting import whole_lines

from osloxide import _native
from osloxide.cli.errors import CommandError
from osloxide.cli.uwsgi import log_format, options
from osloxide.cli.uwsgi.options import Verdict
from osloxide.cli.uwsgi.reader import Reader
from osloxide.cli.uwsgi.translation import Translation

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "tests" / "deployments" / "files").rglob("*.ini"))


def read(text: str, directory: Path, name: str = "site.ini") -> Reader:
    file = directory / name
    file.write_text(text)
    reader = Reader()
    reader.read(str(file), "command line")
    return reader


def values(reader: Reader, name: str) -> list[str]:
    return [it.value for it in reader.settings if it.name == name]


def command(text: str, directory: Path) -> list[str]:
    return Translation.of(read(f"[uwsgi]\n{text}", directory)).command_line()


# ---- the table


def test_every_option_of_every_file_is_honoured_or_needless() -> None:
    names = set()
    for file in FILES:
        names |= set(re.findall(r"^([a-z0-9-]+) = ", file.read_text(), re.MULTILINE))
    unknown = {name for name in names if options.find(name) is None}
    refused = {name for name in names - unknown if options.find(name).verdict is Verdict.REFUSED}

    assert len(names) >= 60
    assert not unknown
    assert not refused


def test_no_option_is_in_the_table_twice() -> None:
    names = [name for option in options.TABLE for name in option.names]

    assert len(names) == len(set(names))


def test_each_honoured_option_has_a_conversion() -> None:
    for option in options.TABLE:
        has_rule = callable(getattr(Translation, f"_{option.rule}", None))
        assert has_rule is (option.verdict is Verdict.HONOURED), option.names


# Of the language, and of the command line alone.
LANGUAGE = re.compile(
    r"(if|for)(-.*)?|if(dir|env|exists|plugin)|end-?(if|for)|reload|stop|st|start|help|usage|version"
)


def test_every_option_of_uwsgi_has_a_verdict() -> None:
    names = (REPOSITORY / "tests" / "deployments" / "uwsgi-options.txt").read_text().split()

    assert len(names) > 900
    assert [it for it in names if options.find(it) is None and not LANGUAGE.fullmatch(it)] == []


def test_conditions_may_be_spelled_without_their_dash(tmp_path: Path) -> None:
    reader = read(
        "[uwsgi]\nifdir = /absent\nname = a\nend-if =\nifexists = /\nprocesses = 3\nendif =\n",
        tmp_path,
    )

    assert [(it.name, it.value) for it in reader.settings if it.name in ("name", "processes")] == [
        ("processes", "3")
    ]


def test_the_page_has_the_table_of_the_code() -> None:
    rows = runpy.run_path(str(REPOSITORY / "tools" / "uwsgi_table.py"))["rows"]()
    page = (REPOSITORY / "docs" / "uwsgi.md").read_text().splitlines()
    heading = page.index(rows[0])

    assert page[heading:] == rows, "print it: .venv/bin/python tools/uwsgi_table.py"


# ---- the language


def test_values_and_comments_are_read_as_uwsgi_reads_them(tmp_path: Path) -> None:
    reader = read(
        "; comment\n# another\n[other]\nprocesses = 9\n[uwsgi]\n"
        "env = FILES=/etc/a.conf;/etc/b.ini\n  spaced   =  a = b  \nvalueless\n\n"
        "env = SECOND=#1\n",
        tmp_path,
    )

    assert values(reader, "env") == ["FILES=/etc/a.conf;/etc/b.ini", "SECOND=#1"]
    assert values(reader, "spaced") == ["a = b"]
    assert values(reader, "valueless") == [""]
    assert values(reader, "processes") == []


def test_magic_variables_and_placeholders_are_expanded_as_by_uwsgi(tmp_path: Path) -> None:
    os.environ["UWSGI_TEST_HOME"] = "/home/x"
    (tmp_path / "at.txt").write_text("from a file\n")
    file = tmp_path / "site.api.ini"
    reader = read(
        "[uwsgi]\nbase = /srv\nworkers = 4\n"
        "show = %(base)/%n|%d|%p|%s|%e|%c|%x|%V\n"
        "home = $(UWSGI_TEST_HOME)|$(UWSGI_TEST_ABSENT)|%%|%(absent)\n"
        f"at = @({tmp_path}/at.txt)\n"
        "sum = %(workers * 2)\nmore = %(workers ++)\nlong = %(workers + 3 - 1)\n"
        "workers = 8\nfirst = %(workers)\nstart-time = %t\nset-placeholder = own=1\n",
        tmp_path,
        file.name,
    )
    del os.environ["UWSGI_TEST_HOME"]

    assert values(reader, "show") == [
        f"/srv/site.api|{tmp_path}/|{file}|site.api.ini|ini|{tmp_path.name}|uwsgi|2.0.31"
    ]
    assert values(reader, "home") == ["/home/x|$(UWSGI_TEST_ABSENT)|%|%(absent)"]
    assert values(reader, "at") == ["from a file"]
    assert [values(reader, name) for name in ("sum", "more", "long")] == [["8"], ["5"], ["6"]]
    assert values(reader, "first") == ["4"]  # as uWSGI: the first of several
    assert abs(int(values(reader, "start-time")[0]) - time.time()) < 3600
    assert values(reader, "own") == ["1"]


def test_conditions_and_loops_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    reader = read(
        "[uwsgi]\nprocesses = 2\n"
        f"if-exists = {tmp_path}/there\nyes = %(_)\nendif =\n"
        f"if-not-exists = {tmp_path}/there\nno = 1\nendif =\n"
        "if-env = PATH\nif-opt = processes=2\nnested = 1\nendif =\nendif =\n"
        "if-opt = processes=3\nno = 2\nendif =\n"
        "if-not-env = UWSGI_TEST_ABSENT\nabsent = 1\nendif =\n"
        "for = a b c\nitem = %(_)\nendfor =\nfor-times = 2\ntime = %(_)\nendfor =\n",
        tmp_path,
    )

    assert values(reader, "yes") == [f"{tmp_path}/there"]
    assert values(reader, "no") == []
    assert values(reader, "nested") == values(reader, "absent") == ["1"]
    assert values(reader, "item") == ["a", "b", "c"]
    assert values(reader, "time") == ["1", "2"]


def test_files_and_sections_are_included_at_their_place(tmp_path: Path) -> None:
    (tmp_path / "base.ini").write_text("[uwsgi]\nprocesses = 2\n[more]\nthreads = 3\n")
    reader = read(
        f"[uwsgi]\nprocesses = 1\nini = {tmp_path}/base.ini\ninclude = {tmp_path}/base.ini:more\n"
        "ini = :own\n[own]\nharakiri = 5\n",
        tmp_path,
    )

    assert values(reader, "processes") == ["1", "2"]
    assert values(reader, "threads") == ["3"]
    assert values(reader, "harakiri") == ["5"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[uwsgi]\nini = {file}\n", "circular include: {file}:uwsgi -> {file}:uwsgi"),
        ("[uwsgi]\nini = /absent.ini\n", "{file}:2: cannot read /absent.ini: No such file"),
        ("[uwsgi]\nini = :absent\n", "{file} has no section [absent] (it has: [uwsgi])"),
        ("[other]\nmaster = 1\n", "{file} has no section [uwsgi] (it has: [other])"),
        ("master = 1\n", "{file} has no section [uwsgi] (it has: none)"),
        ("[uwsgi\nmaster = 1\n", "{file}:1: [uwsgi opens no section"),
        ("[uwsgi]\nif-env = PATH\nmaster = 1\n", "{file}:2: if-env has no endif"),
        ("[uwsgi]\nendif =\n", "{file}:2: endif ends nothing"),
        ("[uwsgi]\nfor = a b\nmaster = 1\n", "{file}:2: for has no endfor"),
        ("[uwsgi]\nif-sunday =\nendif =\n", "{file}:2: if-sunday is a condition that osloxide"),
        ("[uwsgi]\nset-placeholder = a\n", "{file}:2: set-placeholder = a: is no NAME=VALUE"),
        ("[uwsgi]\nname = @(/absent)\n", "cannot read /absent"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, text: str, error: str
) -> None:
    file = tmp_path / "site.ini"

    with pytest.raises(CommandError) as raised:
        read(text.format(file=file), tmp_path)

    assert error.format(file=file) in str(raised.value)


# ---- the translation

BASE = "module = site\nhttp-socket = 127.0.0.1:0\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http-socket = :80\nmodule = a.b:c\n", ["a.b:c", "--bind", "http://:80"]),
        ("http = *:80\nmodule = a\ncallable = app\n", ["a:app", "--bind", "http://:80"]),
        ("socket = @name\nwsgi-file = /x/y\n", ["/x/y", "--bind", "uwsgi://unix:@name"]),
        ("socket = [::1]:5\nprotocol = http\nfile = y.py\n",
         ["./y.py", "--bind", "http://[::1]:5"]),
        ("uwsgi-socket = /s\npaste = config:/p#q\n", ["config:/p#q", "--bind", "uwsgi://unix:/s"]),
        ("http = fd://3\npaste = /p\n", ["config:/p", "--bind", "http://fd://3"]),
        ("http = :80\nmount = /a=/usr/bin/a-api\nmanage-script-name = true\n",
         ["/usr/bin/a-api", "--bind", "http://:80"]),
        ("http = :80\nmount = /a=a.wsgi:make()\n", ["a.wsgi:make()", "--bind", "http://:80"]),
    ],
)  # fmt: skip
def test_applications_and_addresses_are_translated(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    assert command(text, tmp_path)[:3] == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("processes = 3\nprocesses = 5\n", ["--workers", "5"]),
        ("threads = 7\n", ["--threads", "7"]),
        ("", ["--threads", "1"]),
        ("buffer-size = 65535\n", ["--limit-request-line", "65535"]),
        ("socket-timeout = 10\nhttp-timeout = 20\n", ["--client-timeout", "20"]),
        ("http-timeout = 20\nsocket-timeout = 10\n", ["--client-timeout", "20"]),
        ("add-header = Connection: close\n", ["--no-keep-alive"]),
        ("add-header = X-A: b\n", ["--add-header=X-A: b"]),
        ("enable-proxy-protocol = true\n",
         ["--proxy-protocol", "--proxy-allow-from", "*"]),
        ("limit-post = 5\n", ["--limit-request-body", "5"]),
        ("pyargv = --config-file x\n", ["--pyargv=--config-file x"]),
        ("chmod-socket\n", ["--socket-mode", "666"]),
        ("logto2 = /l\nuid = a\ngid = b\n", ["--log-file-owner", "a:b"]),
        ("pythonpath = /a\npythonpath = /b\n", ["--pythonpath", "/a,/b"]),
        ("route-user-agent = ^a b$ donotlog:\n", ["--no-access-log-for=user-agent=^a b$"]),
        ("log-4xx = true\nlog-5xx = true\n", ["--access-log-status", "4xx,5xx"]),
        ('log-format = %(addr) - %(user) [%(ltime)] "%(method) %(uri) %(proto)" %(status) '
         '%(size) "%(referer)" "%(uagent)"\n',
         ["--access-log=-", "--access-logformat",
          '%(client_ip)s - %({REMOTE_USER}e)s [%({%d/%b/%Y:%H:%M:%S %z}t)s] "%(request_line)s" '
          '%(status_code)s %(body_length)s "%(referer)s" "%(user_agent)s"']),
        ("logto = /l\nlog-format = %(referer)\n", ["--access-log", "/l"]),
        ("log-format = %(addr) %(method) %(uri) %(proto) %(status) 100%\n",
         ["--access-logformat",
          "%(client_ip)s %(request_line)s %(status_code)s 100%%"]),
        ("log-format = %(user) %(secs)\n", ["--access-logformat=- %(wall_seconds).6f"]),
        ("log-format = [%(pid)|%(wid)] %(uri) in %(msecs) ms, %(micros)%\n",
         ["--access-log=-", "--access-logformat",
          "[%(process_id)s|%(worker)s] %(target)s in %(wall_milliseconds)s ms, "
          "%(wall_microseconds)s%%"]),
        ("log-format = %(var.HTTP_X_ID) %(var.REMOTE_PORT) %(user)\n",
         ["--access-logformat", "%({HTTP_X_ID}e)s %(client_port)s %({REMOTE_USER}e)s"]),
        ("log-format = %(ftime)\nlog-date = %%Y\n",
         ["--access-logformat", "%({%d/%b/%Y:%H:%M:%S %z}t)s"]),
        ("log-format = %(ftime)\nlog-date = %%F %%T\nlog-format-strftime = true\n",
         ["--access-logformat", "%({%F %T}t)s"]),
        ("mine = %(base)\nbase = x\nother = %(mine)\nset-ph = other=\n",
         ["--uwsgi-option=base=x"]),
        ("start-time = 5\n", ["--uwsgi-option=start-time=5"]),
    ],
)  # fmt: skip
def test_values_are_translated(tmp_path: Path, text: str, words: list[str]) -> None:
    line = command(BASE + text, tmp_path)
    place = line.index(words[0])

    assert line[place : place + len(words)] == words


@pytest.mark.parametrize("value", ["false", "off", "no", "0", "False"])
def test_a_flag_may_be_off(tmp_path: Path, value: str) -> None:
    assert "--master" not in command(f"{BASE}master = {value}\n", tmp_path)
    assert "--master" in command(f"{BASE}master = {value}\nmaster = anything\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("procesess = 4\n", "site.ini:4: option procesess: is unknown; do you mean processes?"),
        ("http_socket = :80\n", "option http_socket: is unknown; do you mean http-socket?"),
        ("zzz = 1\n", "write set-placeholder = zzz=VALUE"),
        ("processes = many\n", "site.ini:4: processes = many: is no whole number of at least 1"),
        ("processes = -1\n", "is no whole number of at least 1"),
        ("threads = 0\n", "threads = 0: is no whole number"),
        ("https = :443\n", "names no certificate and key; give ADDRESS,CERTIFICATE,KEY"),
        ("https = :443,a,b\nhttps = :444,c,d\n", "has other files than the address before it"),
        ("gevent = 100\n", "option gevent: osloxide does not offer this; requests run on native"),
        ("emperor = /etc/x\n", "option emperor: osloxide does not offer this; start one osloxide"),
        ("daemonize = /log\n", "let the service manager start it in the background"),
        ("hook-master-start = exec:rm\n", "osloxide runs no hooks"),
        ("route-user-agent = ^x break:403\n", "osloxide routes nothing but REGEX donotlog:"),
        ("static-map = nowhere\n", "is no /PREFIX=DIRECTORY"),
        ("mount = a=b.py\n", "is no /PREFIX=APPLICATION"),
        ("mount = /a=b.py\nmount = /c=d.py\n", "one application is mounted"),
        ("mount = /a=b.py\n", "mount beside module, wsgi-file or paste"),
        ("env = NOTHING\n", "is no NAME=VALUE"),
        ("protocol = scgi\n", "is a protocol that is not spoken"),
        ("http-socket = =0\n", "names a shared socket"),
        ("http-socket =\n", "is blank; give HOST:PORT"),
        ("log-format = %(cookie.x)\n", "%(cookie.x) is unknown; known are addr"),
        ("log-format = %(my_var)\n", "what an application sets by uwsgi.set_logvar() it has to"),
        ("log-format = %(hsize)\n", "%(hsize) is not logged: heads are not counted"),
        ("log-format = %(metric.worker.1.requests)\n", "osloxide metrics offers the figures"),
        (
            "log-format = %(ftime)\nlog-date = %%Z\nlog-format-strftime = 1\n",
            "site.ini:4: log-format = %(ftime): %(ftime) is log-date = %Z, of which %Z is unknown",
        ),
        ("limit-post = much\n", "limit-post = much: is no whole number of at least 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_file_line_and_remedy(
    tmp_path: Path, text: str, error: str
) -> None:
    with pytest.raises(CommandError) as raised:
        command(BASE + text, tmp_path)

    assert error in str(raised.value)


def test_every_key_of_uwsgis_log_format_is_honoured_or_refused_by_name(tmp_path: Path) -> None:
    for number, key in enumerate((*log_format.KEYS, "var.HTTP_X", "var.PATH_INFO")):
        line = f"%({key}) %(uri)"
        if key in log_format._REFUSED:
            with pytest.raises(ValueError, match=rf"^%\({key}\) is not logged: ."):
                log_format.translated(line)
        else:
            translated, is_native = log_format.translated(line)
            assert is_native
            _native.AccessLog(str(tmp_path / str(number)), translated)


def test_a_blank_value_is_none(tmp_path: Path) -> None:
    line = command(f"{BASE}pyargv =\nname =\nmaster =\nlogto =\nuid =\n", tmp_path)

    assert not {"--pyargv", "--name", "--user", "--log-file"} & set(line)
    assert "--master" in line


def test_the_first_of_module_wsgi_file_and_paste_wins(tmp_path: Path) -> None:
    all_three = "paste = config:/p\nwsgi-file = /s\nmodule = m:a\nhttp-socket = :1\n"

    assert command(all_three, tmp_path)[0] == "m:a"
    assert command(all_three.replace("module = m:a\n", ""), tmp_path)[0] == "/s"


# ---- the command


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "site_.py").write_text(
        "import os, sys, uwsgi\n"
        "def left():\n"
        "    print('atexit', os.getpid(), flush=True)\n"
        "uwsgi.atexit = left\n"
        "def application(environ, start_response):\n"
        "    assert uwsgi.get_logvar('user') is None\n"
        "    uwsgi.set_logvar('user', 'a')\n"
        "    assert uwsgi.get_logvar('user') == b'a'\n"
        "    body = b''\n"
        "    while piece := uwsgi.chunked_read():\n"
        "        body += piece\n"
        "    start_response('200 OK', [('X-Gone', '1')])\n"
        "    words = [os.getpid(), os.getppid(), uwsgi.numproc, uwsgi.worker_id(), *sys.argv]\n"
        "    return [' '.join(map(str, words)).encode() + b' ' + body]\n"
    )
    with starter(tmp_path) as begin:
        yield begin


@pytest.mark.parametrize("master", ["", "master = true\n"])
def test_one_process_has_a_parent_where_master_asks_for_it(
    start: Callable[..., Running], tmp_path: Path, master: str
) -> None:
    (tmp_path / "site.ini").write_text(
        f"[uwsgi]\n{master}module = site_\nhttp-socket = 127.0.0.1:0\npyargv = --a b\n"
    )
    site = start("uwsgi", "site.ini")

    pid, parent, numproc, worker, *argv = fetch(site.port())

    assert (int(pid) == site.pid) is not bool(master)
    assert (int(parent) == site.pid) is bool(master)
    assert (numproc, worker) == ("1", "1")
    assert argv == ["uwsgi", "--a", "b"]
    assert site.stop() == 0, site.log
    assert site.log.count("atexit ") == 1


def test_a_line_has_what_uwsgis_keys_say(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "site.ini").write_text(
        "[uwsgi]\nhttp-socket = 127.0.0.1:0\nmodule = site_\nprocesses = 2\n"
        f"logto = {tmp_path}/log\n"
        "log-format = {%(pid)|%(wid)|%(method)|%(uri)|%(host)|%(var.HTTP_X_ID)|%(var.QUERY_STRING)"
        "|%(cl)|%(status)|%(user)|%(msecs)|%(tmsecs)|%(epoch)}\n"
    )
    before = time.time()
    site = start("uwsgi", "--ini", "site.ini")
    connection = http.client.HTTPConnection("127.0.0.1", site.port(), timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/a?b=c", b"body", {"X-Id": "seven", "Host": "a.example"})
        connection.getresponse().read()

    wait_until(lambda: any("seven" in line for line in whole_lines(tmp_path / "log")), "the line")
    assert site.stop() == 0, site.log
    line = next(line for line in whole_lines(tmp_path / "log") if "seven" in line)
    pid, worker, *rest = line.strip("{}").split("|")
    assert pid != str(site.pid)
    assert worker in ("1", "2")
    assert rest[:8] == ["POST", "/a?b=c", "a.example", "seven", "b=c", "4", "200", "-"]
    milliseconds, arrival, now = map(int, rest[8:])
    assert milliseconds >= 0
    # An hour: the machine's clock may be set between the two.
    assert abs(arrival / 1000 - before) < 3600
    assert abs(now - before) < 3600


def test_a_pid_file_reloads_and_stops_the_service(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "site.ini").write_text("[uwsgi]\nmodule = site_\nmaster = 1\nprocesses = 2\n")
    site = start(
        "uwsgi", "--autoload", "--http-socket", "127.0.0.1:0", "--ini", "site.ini",
        "--safe-pidfile=run.pid", "-L",
    )  # fmt: skip
    before = set(site.running(2))
    port = site.port()

    def control(option: str) -> None:
        done = run_command(
            [*OSLOXIDE, "uwsgi", option, "run.pid"], environ=environment(), cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, "")

    control("--reload")
    wait_until(lambda: not before & set(site.running(2)), "other workers")
    assert fetch(port)
    control("--stop")

    assert site.process.wait(30) == 0, site.log
    assert not (tmp_path / "run.pid").exists()
    assert "GET /" not in site.log


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "No such file or directory; is the service running?"),
        ("soup\n", "holds 'soup', which is no process id"),
        ("", "holds '', which is no process id"),
        ("0\n", "which is no process id"),
        ("{other}\n", "is no service of osloxide; the file is an old one"),
        ("4194300\n", "is no service of osloxide"),
    ],
)
def test_a_pid_file_that_names_no_service_signals_nobody(
    tmp_path: Path, content: str | None, error: str
) -> None:
    # Not the process of the tests: it has made launchers, and may count as a service.
    other = subprocess.Popen(["sleep", "1000"])
    try:
        if content is not None:
            (tmp_path / "pid").write_text(content.format(other=other.pid))
        command = [*OSLOXIDE, "uwsgi", "--reload", "pid"]
        done = run_command(command, environ=environment(), cwd=tmp_path)

        assert done.returncode == 1
        assert error in done.stderr
        assert other.poll() is None
    finally:
        other.kill()
        assert other.wait() == -signal.SIGKILL


def test_a_link_called_uwsgi_takes_its_command_line(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "uwsgi").symlink_to(Path(sys.executable).parent / "osloxide")
    done = run_command([str(tmp_path / "uwsgi"), "--version"], environ=environment())

    assert done.stdout == "2.0.31\n"


def test_explain_prints_every_option_and_the_equal_command(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "site.ini").write_text(
        "[uwsgi]\nmodule = site_\nhttp-socket = 127.0.0.1:0\ndie-on-term = true\nmaster = true\n"
        "add-header = Connection: close\nenv = A=b c\n"
    )
    done = run_command(
        [*OSLOXIDE, "uwsgi", "--explain", "site.ini"], environ=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    table, line = lines[:-2], lines[-1]
    assert [row.split()[1] for row in table[1:]] == [
        "module", "http-socket", "die-on-term", "master", "add-header", "env",
    ]  # fmt: skip
    assert [row.split()[0] for row in table[1:]] == [f"site.ini:{n}" for n in range(2, 8)]
    assert line.startswith("osloxide serve site_ --bind http://127.0.0.1:0 --threads 1")

    import shlex

    site = start(*shlex.split(line)[1:])  # the command is equal
    assert fetch(site.port())[2:5] == ["1", "1", "uwsgi"]
    assert site.stop() == 0, site.log


def test_warm_loads_once_what_the_file_has_each_worker_load(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "once.py").write_text(
        "with open('loads', 'a') as log:\n    log.write('x')\nfrom site_ import application\n"
    )
    (tmp_path / "site.ini").write_text(
        "[uwsgi]\nmodule = once\nhttp-socket = 127.0.0.1:0\nmaster = true\nprocesses = 3\n"
        "lazy-apps = true\n"
    )
    site = start("uwsgi", "--ini", "site.ini", "--warm")
    fetch(site.port())
    site.running(3)
    assert (tmp_path / "loads").read_text() == "x"
    assert site.stop() == 0, site.log

    told = run_command(
        [*OSLOXIDE, "uwsgi", "--warm", "--explain", "site.ini"], environ=environment(), cwd=tmp_path
    )
    assert told.stdout.rstrip().endswith(" --warm")


def test_explain_of_a_file_that_is_refused_still_explains_the_rest(tmp_path: Path) -> None:
    (tmp_path / "site.ini").write_text("[uwsgi]\ngevent = 5\nmaster = true\nnope = 1\n")
    done = run_command(
        [*OSLOXIDE, "uwsgi", "--explain", "site.ini"], environ=environment(), cwd=tmp_path
    )

    assert done.returncode == 1
    assert re.search(r"site.ini:2 +gevent = 5 +refused", done.stdout)
    assert re.search(r"site.ini:3 +master = true +honoured", done.stdout)
    assert re.search(r"site.ini:4 +nope = 1 +refused +is unknown", done.stdout)
    assert "APPLICATION --bind ADDRESS" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "no option and no ini file was given"),
        (["--ini"], "option --ini needs a value"),
        (["--ini", "absent.ini"], "cannot read absent.ini: No such file or directory"),
        (["absent.ini"], "cannot read absent.ini"),
        (["site.py"], "site.py: no ini file"),
        (["--http-socket", ":0"], "no application: give module"),
        (["--module", "m"], "no address to listen on: give http-socket"),
        (["--no-such-option", "1"], "option no-such-option: is unknown"),
        (["-Z"], "option -Z is unknown"),
        (["-w", "m", "-p", "x", "--http-socket", ":0"], "command line: processes = x: is no whole"),
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path: Path, arguments: list[str], error: str) -> None:
    done = run_command([*OSLOXIDE, "uwsgi", *arguments], environ=environment(), cwd=tmp_path)

    assert done.returncode == 1
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_socket_that_is_taken_is_named(tmp_path: Path) -> None:
    (tmp_path / "site_.py").write_text("application = print\n")
    with socket.create_server(("127.0.0.1", 0)) as owner:
        where = f"127.0.0.1:{owner.getsockname()[1]}"
        done = run_command(
            [*OSLOXIDE, "uwsgi", "--http-socket", where, "-w", "site_"],
            environ=environment(), cwd=tmp_path,
        )  # fmt: skip

    assert done.returncode == 1
    assert f"cannot listen on {where}: Address already in use" in done.stderr


def test_a_proxy_header_is_expected_on_http_sockets_alone(tmp_path: Path) -> None:
    option = "module = m\nenable-proxy-protocol = true\n"

    assert "--proxy-protocol" in command(f"{option}http-socket = :1\nsocket = :2\n", tmp_path)
    assert "--proxy-protocol" not in command(f"{option}socket = :2\n", tmp_path)
