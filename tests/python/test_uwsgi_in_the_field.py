"""Kinds of ini files that public charts and guides have: each starts, or says what to change.

The values are made up; options, spelling and order are of the kinds that were found.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import pytest

from osloxide import _native
from osloxide.cli import contradictions, serve_options, uwsgi
from osloxide.cli.errors import CommandError
from osloxide.cli.uwsgi.reader import Reader
from osloxide.cli.uwsgi.translation import Translation

COMMON = "buffer-size = 65535\nlazy-apps = true\ndie-on-term = true\nthunder-lock = true\n"


def command(text: str, directory: Path) -> list[str]:
    file = directory / "site.ini"
    file.write_text(text)
    reader = Reader()
    reader.read(str(file), "command line")
    return Translation.of(reader).command_line()


# A chart whose hook has its second word behind a tab and a number sign.
COMMENTED_HOOK = f"""[uwsgi]
need-app = true
http-socket = :8774
uid = nova
gid = nova
{COMMON}hook-master-start = unix_signal:15\t# gracefully_kill_them_all
worker-reload-mercy = 90
master = false
memory-report = true
processes = 1
wsgi-file = /usr/bin/nova-api-wsgi
pyargv = --config-file /etc/a.conf --config-file /etc/b.conf
"""

# The service's own configuration and uWSGI's section in one file; HTTP by `protocol`.
SHARED_FILE = """[DEFAULT]
debug = true
sql_connection = mysql://u:p%40ss@h/db
[composite:main]
use = egg:Paste#urlmap
[uwsgi]
socket = :9311
protocol = http
processes = 1
lazy = true
vacuum = true
no-default-app = true
plugins = python
paste = config:/etc/barbican/barbican-api-paste.ini
add-header = Connection: close
"""

# Metrics and graceful harakiri, as a large public cloud runs neutron, less its log format.
TUNED = f"""[uwsgi]
{COMMON}module = neutron.wsgi.api:application
auto-procname = true
procname-prefix = neutron-api-
http = :9696
need-plugins = shortmsecs
listen = 4096
single-interpreter = true
py-call-osafterfork = true
log-date = %%Y-%%m-%%d %%H:%%M:%%S
log-format-strftime = true
http-timeout = 120
harakiri = 120
harakiri-verbose = true
harakiri-graceful-signal = 28
harakiri-graceful-timeout = 5
post-buffering = 4096
"""

# A guide for Apache: two addresses, a logger and no `master` of the guide's own.
TWO_ADDRESSES = f"""[uwsgi]
{COMMON}uwsgi-socket = 127.0.0.1:35000
socket = /run/site/site.socket
chmod-socket = 666
wsgi-file = /usr/bin/site-wsgi
logger = file:/var/log/site.log
pidfile = /run/site.pid
processes = 2
"""

# Variables of the file's own, and values from the environment of the container.
OWN_VARIABLES = """[uwsgi]
base = /srv/site
chdir = %(base)
pythonpath = %(base)/lib
module = site_app
callable = app
socket = %(base)/%n.sock
workers = 4
threads = 2
disable-sendfile = true
ksm = 10
cheaper = 1
"""


# The guide of a metrics service, with the misspelling that every copy of it has.
MISSPELLED = """[uwsgi]
http = localhost:8041
wsgi-file = /usr/local/bin/gnocchi-api
master = true
die-on-term = true
threads = 32
processes = 32
enabled-threads = true
thunder-lock = true
plugins = http.python3
buffer-size = 65535
"""

# The guide of an accelerator service: a unix socket for Apache, and the service's own module.
BEHIND_APACHE = f"""[uwsgi]
{COMMON}chmod-socket = 666
socket = /var/run/uwsgi/cyborg-wsgi-api.socket
add-header = Connection: close
hook-master-start = unix_signal:15 gracefully_kill_them_all
plugins = python
enable-threads = true
worker-reload-mercy = 90
exit-on-reload = false
master = true
processes = 2
module = cyborg.wsgi.api:application
"""

# An operator for Kubernetes gives all of it on the command line, the dashboard's files included.
OF_AN_OPERATOR = """[uwsgi]
http = :8080
module = openstack_dashboard.wsgi
master = true
die-on-term = true
need-app = true
processes = 2
threads = 1
static-map = /static=/
log-master = true
log-format = %(method) %(uri) => generated %(rsize) bytes in %(msecs) msecs (%(proto) %(status))
"""

# The lines of a cloud that are read beside oslo.log's: the time as that has it, and the pid.
LIKE_OSLO_LOG = f"""[uwsgi]
{COMMON}http-socket = :5000
module = keystone.wsgi.api
auto-procname = true
procname-prefix = keystone-api-
log-x-forwarded-for = true
log-date = %%Y-%%m-%%d %%H:%%M:%%S,000
log-format-strftime = true
log-format = %(ftime) %(pid) INFO uWSGI [-] %(addr) "%(method) %(uri) %(proto)" status: %(status) len: %(size) time: %(secs) agent: %(uagent)
harakiri = 120
harakiri-verbose = true
post-buffering = 4096
backlog-status = true
py-tracebacker = /var/lib/keystone/uwsgi_pytracebacker.
memory-report = true
"""  # noqa: E501 - as it stands in the file

# For programs that collect logs: each line is an object of JSON.
AS_JSON = """[uwsgi]
socket = /run/site.sock
module = site_app
logger = file:/var/log/site.json
log-format = {"time": "%(ltime)", "method": "%(method)", "uri": "%(uri)", "status": %(status), "host": "%(host)", "pid": %(pid), "worker": %(wid), "in": %(cl), "out": %(rsize), "ms": %(msecs), "id": "%(var.HTTP_X_REQUEST_ID)"}
"""  # noqa: E501 - as it stands in the file

# What a distribution's puppet module sets of a file, and what the init script adds.
OF_PUPPET = f"""[uwsgi]
{COMMON}processes = 4
threads = 1
listen = 100
http-socket = [::]:8779
wsgi-file = /usr/bin/trove-api-wsgi
chdir = /var/lib/trove
logto = /var/log/trove/trove-api.log
name = trove-api
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MISSPELLED, ["/usr/local/bin/gnocchi-api", "http://localhost:8041", "32"]),
        (
            BEHIND_APACHE,
            ["cyborg.wsgi.api:application",
             "uwsgi://unix:/var/run/uwsgi/cyborg-wsgi-api.socket", "666"],
        ),
        (
            OF_AN_OPERATOR,
            ["--access-log=-", "--static-map=/static=/",
             "%(method)s %(target)s => generated %(body_length)s bytes in %(wall_milliseconds)s "
             "msecs (%(protocol)s %(status_code)s)"],
        ),
        (
            LIKE_OSLO_LOG,
            ["%({%Y-%m-%d %H:%M:%S,000}t)s %(process_id)s INFO uWSGI [-] %(client_ip)s "
             '"%(request_line)s" status: %(status_code)s len: %(body_length)s time: '
             "%(wall_seconds).6f agent: %(user_agent)s"],
        ),
        (
            AS_JSON,
            ["/var/log/site.json",
             '{"time": "%({%d/%b/%Y:%H:%M:%S %z}t)s", "method": "%(method)s", "uri": "%(target)s", '
             '"status": %(status_code)s, "host": "%({host}i)s", "pid": %(process_id)s, "worker": '
             '%(worker)s, "in": %(request_length)s, "out": %(body_length)s, "ms": '
             '%(wall_milliseconds)s, "id": "%({HTTP_X_REQUEST_ID}e)s"}'],
        ),
        (OF_PUPPET, ["/usr/bin/trove-api-wsgi", "http://[::]:8779", "100", "trove-api"]),
        (COMMENTED_HOOK, ["/usr/bin/nova-api-wsgi", "http://:8774", "nova", "90"]),
        (SHARED_FILE, ["config:/etc/barbican/barbican-api-paste.ini", "http://:9311"]),
        (TUNED, ["neutron.wsgi.api:application", "http://:9696", "120", "neutron-api-"]),
        (TWO_ADDRESSES, ["uwsgi://127.0.0.1:35000", "uwsgi://unix:/run/site/site.socket", "666"]),
        (OWN_VARIABLES, ["site_app:app", "uwsgi://unix:/srv/site/site.sock", "/srv/site", "4"]),
    ],
)  # fmt: skip
def test_a_file_of_this_kind_is_taken_whole(tmp_path: Path, text: str, words: list[str]) -> None:
    found = command(text, tmp_path)

    assert [word for word in words if word not in found] == []
    serve_options.declare(parser := argparse.ArgumentParser())
    chosen = parser.parse_args(found)
    if chosen.access_log is not None:
        _native.AccessLog(str(tmp_path / "log"), chosen.access_logformat)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("enable-thread = true", "do you mean enable-threads?"),
        ("dogstatsd-all-gauges = true", "osloxide metrics"),
        ("log-format = [pid: %(pid)] {%(vars) vars in %(pktsize) bytes}", "%(vars) is not logged"),
        ("emperor-tyrant = true", "template unit"),
        ("daemonize = /var/log/site.log", "let the service manager start it"),
        ("stats-push = dogstatsd:127.0.0.1:9125", "osloxide metrics"),
        ("log-maxsize = 50000000", "rotate by logrotate and send SIGUSR1"),
        ("gevent = 1024", "requests run on native threads"),
        ("hook-master-start = exec:/bin/true", "ExecStartPre="),
        ("log-format = %(ftime),%(shortmsecs) %(uri)", "%(shortmsecs) is unknown"),
        ("emperor = /etc/uwsgi/vassals", "template unit"),
    ],
)
def test_a_line_of_this_kind_is_refused_with_its_remedy(
    tmp_path: Path, line: str, remedy: str
) -> None:
    with pytest.raises(CommandError) as refusal:
        command(f"[uwsgi]\nhttp-socket = :80\nmodule = a:b\n{line}\n", tmp_path)

    assert f"{tmp_path}/site.ini:4" in str(refusal.value)
    assert remedy in str(refusal.value)


# A guide that enters the application's directory, and names files from there.
RELATIVE = """[uwsgi]
socket = site.sock
https-socket = :8443,tls/crt,tls/key
stats = stats.sock
safe-pidfile = site.pid
static-map = /static=static
touch-reload = reload.me
home = venv
req-logger = file:site.log
wsgi-file = wsgi.py
chdir = site
"""


def test_relative_paths_begin_where_uwsgi_has_them_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seen of uWSGI 2.0.31: it enters chdir, wherever that stands, before all of these.
    monkeypatch.chdir(tmp_path)
    words = " ".join(command(RELATIVE, tmp_path))
    for place in (
        "unix:{}/site.sock",
        "--certfile {}/tls/crt",
        "--keyfile {}/tls/key",
        "--stats unix:{}/stats.sock",
        "--pid {}/site.pid",
        "--static-map=/static={}/static",
        "--touch-reload={}/reload.me",
        "--venv {}/venv",
        "--log-file {}/site.log",
    ):
        assert place.format(tmp_path / "site") in words
    # ... and after these two.
    early = command(f"{RELATIVE}pidfile = early.pid\nlogto = early.log\n", tmp_path)
    assert f"--pid {tmp_path}/early.pid" in " ".join(early)
    assert f"--log-file {tmp_path}/early.log" in " ".join(early)


# What the command gnocchi-api executes as ``uwsgi``, in its mode http.
GNOCCHI_API = [
    *("--if-not-plugin", "python3", "--plugin", "python3", "--endif", "--http", "127.0.0.1:8041"),
    *("--master", "--enable-threads", "--thunder-lock"),
    *("--hook-master-start", "unix_signal:15 gracefully_kill_them_all", "--die-on-term"),
    *("--processes", "3", "--threads", "2", "--lazy-apps", "--chdir", "/"),
    *("--wsgi", "gnocchi.rest.wsgi", "--pyargv", "--config-file /etc/gnocchi/gnocchi.conf"),
    *("--so-keepalive", "--http-keepalive", "--add-header", "Connection: Keep-Alive"),
]


def test_the_command_of_gnocchi_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert uwsgi.run(["--explain", *GNOCCHI_API]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("osloxide serve gnocchi.rest.wsgi --bind http://127.0.0.1:8041 ")
    assert "--no-keep-alive" not in last
    assert "--add-header" not in last


def test_conditions_of_a_command_line_hold_for_what_stands_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "four.ini").write_text("[uwsgi]\nprocesses = 4\n")
    monkeypatch.setenv("FOUR", "1")
    four = ["--if-env", "FOUR", "--ini", str(tmp_path / "four.ini"), "--endif"]
    never = ["--if-env=NEVER", "--threads", "9", "--http-socket", ":9", "--endif"]
    loop = ["--for", "A B", "--env", "%(_)=1", "--endfor"]
    assert uwsgi.run(["--explain", "--http-socket", ":1", *never, *four, *loop]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "--workers 4" in last
    assert "--bind http://:1 --threads 1" in last
    assert "--env=A=1 --env=B=1" in last
    with pytest.raises(CommandError, match="command line: if-env has no endif"):
        uwsgi.run(["--explain", "--if-env", "FOUR"])


FILES = Path(__file__).parents[1] / "deployments" / "files"


@pytest.mark.parametrize(
    "file",
    [
        *(str(it.relative_to(FILES)) for it in sorted(FILES.rglob("*.ini"))),
        "keep-alive.ini", "stats.ini",
    ],
)  # fmt: skip
def test_the_command_that_is_equal_is_taken_as_it_is_printed(file: str, tmp_path: Path) -> None:
    own = {
        "keep-alive.ini": "add-header = Connection: close\nhttp-keepalive = 5\n",
        "stats.ini": "log-format = %(uri)\ndisable-logging = true\nstats-http = true\n",
    }
    path = FILES / file
    if file in own:
        path = tmp_path / file
        path.write_text("[uwsgi]\nmodule = m\nhttp-socket = :0\n" + own[file])
    reader = Reader()
    with contextlib.suppress(CommandError):  # files that are for several sections
        reader.read(str(path), "command line")
    line = Translation.of(reader).command_line(is_complete=False)
    parser = argparse.ArgumentParser()
    serve_options.declare(parser)

    # Debian's files leave the address to the command line.
    line = [":0" if word == "ADDRESS" else word for word in line]
    contradictions.check(parser.parse_args(line))
