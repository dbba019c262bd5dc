"""Kinds of ini files that public charts and guides have: each starts, or says what to change.

The values are made up; options, spelling and order are of the kinds that were found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (COMMENTED_HOOK, ["/usr/bin/nova-api-wsgi", "http://:8774", "nova", "90"]),
        (SHARED_FILE, ["config:/etc/barbican/barbican-api-paste.ini", "http://:9311"]),
        (TUNED, ["neutron.wsgi.api:application", "http://:9696", "120", "neutron-api-"]),
        (TWO_ADDRESSES, ["uwsgi://127.0.0.1:35000", "uwsgi://unix:/run/site/site.socket", "666"]),
        (OWN_VARIABLES, ["site_app:app", "uwsgi://unix:/srv/site/site.sock", "/srv/site", "4"]),
    ],
)
def test_a_file_of_this_kind_is_taken_whole(tmp_path: Path, text: str, words: list[str]) -> None:
    found = command(text, tmp_path)

    assert [word for word in words if word not in found] == []


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("enabled-threads = true", "do you mean enable-threads?"),
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
