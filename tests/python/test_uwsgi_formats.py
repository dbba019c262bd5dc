"""uWSGI's files that are no ini files, its environment, and the ways its command line is written.

Rules: uWSGI 2.0.31, whose own reading of the same input each expected value was compared with.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from _children import environment, run_command
from support.serving import OSLOXIDE

from osloxide.cli import uwsgi
from osloxide.cli.errors import CommandError
from osloxide.cli.uwsgi import options
from osloxide.cli.uwsgi.reader import Reader
from osloxide.cli.uwsgi.translation import Translation

YAML = """# A chart's file.
other:
  module: not.this
uwsgi:
  uid: nova
  "gid": 'nova'
  master: true
  http: :8774           # the port of the chart
  socket: '[::]:3031'
  stats: *:1717
  chdir: %d
  base: "/srv/site"
  pidfile: %(base)/run.pid
  processes: 4
  module: a.wsgi:application
  env:
    - A=1;2
    - B=# no comment
  pythonpath: [/a, /b]
  vacuum:
"""
JSON = """{"uwsgi": {
  "module": "a.wsgi:application", "http": ":8774", "socket": "[::]:3031", "stats": ":1717",
  "master": true, "lazy-apps": false, "vacuum": null, "processes": 4, "uid": "nova", "gid": "nova",
  "env": ["A=1;2", "B=# no comment"], "pythonpath": ["/a", "/b"], "chdir": "%d",
  "base": "/srv/site", "pidfile": "%(base)/run.pid"
}}
"""
XML = """<?xml version="1.0"?>
<!-- a remark -->
<uwsgi id="api">
  <module>a.wsgi:application</module>
  <http>:8774</http><socket>[::]:3031</socket><stats>:1717</stats>
  <master/> <vacuum/>
  <processes>4</processes> <uid>nova</uid> <gid>nova</gid>
  <env>A=1;2</env> <env>B=# no comment</env>
  <pythonpath>/a</pythonpath> <pythonpath>/b</pythonpath> <chdir>%d</chdir>
  <base>/srv/site</base> <pidfile>%(base)/run.pid</pidfile>
</uwsgi>
"""


def read(text: str, directory: Path, name: str, option: str | None = None) -> Reader:
    (directory / name).write_text(text, errors="surrogateescape")
    reader = Reader()
    reader.read(str(directory / name), "command line", kind=option)
    reader.finish()
    return reader


def values(reader: Reader, name: str) -> list[str]:
    return [it.value for it in reader.settings if it.name == name]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yaml", YAML), ("a.yml", YAML), ("a.json", JSON), ("a.js", JSON), ("a.xml", XML)],
)
def test_a_file_of_another_format_says_what_the_ini_file_says(
    tmp_path: Path, name: str, text: str
) -> None:
    reader = read(text, tmp_path, name)
    line = Translation.of(reader).command_line()

    assert line[0] == "a.wsgi:application"
    for words in (
        ["--bind", "http://:8774"], ["--bind", "uwsgi://[::]:3031"], ["--workers", "4"],
        ["--user", "nova"], ["--group", "nova"], ["--chdir", f"{tmp_path}/"],
        ["--pid", "/srv/site/run.pid"], ["--pythonpath", "/a,/b"],
    ):  # fmt: skip
        assert words in [line[place : place + 2] for place in range(len(line))], line
    assert {"--master", "--env=A=1;2", "--env=B=# no comment"} <= set(line)
    assert any(word.endswith(":1717") for word in line)


def test_options_of_the_command_line_name_the_format_of_a_file_of_any_name(
    tmp_path: Path,
) -> None:
    for option, text in (("yaml", YAML), ("json", JSON), ("xml", XML)):
        file = tmp_path / f"{option}.conf"
        file.write_text(text)
        done = run_command(
            [*OSLOXIDE, "uwsgi", "--explain", f"--{option}", str(file)], environ=environment()
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "osloxide serve a.wsgi:application" in done.stdout


def test_files_of_all_formats_include_each_other(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("uwsgi:\n  threads: 3\nspecial:\n  harakiri: 5\n")
    (tmp_path / "more.json").write_text('{"uwsgi": {"listen": 7}}')
    (tmp_path / "more.xml").write_text(
        "<a><uwsgi id='x'/><uwsgi id='y'><umask>022</umask></uwsgi></a>"
    )
    reader = read(
        f"[uwsgi]\nyaml = {tmp_path}/more.yaml\ninclude = {tmp_path}/more.yaml:special\n"
        f"json = {tmp_path}/more.json\nxml = {tmp_path}/more.xml:y\n",
        tmp_path,
        "site.ini",
    )

    assert [values(reader, it) for it in ("threads", "harakiri", "listen", "umask")] == [
        ["3"], ["5"], ["7"], ["022"],
    ]  # fmt: skip


YAML_OF_SEVERAL = """# Of several programs.
---
x-common: &common
  kept: true
  listen: *:81
  made: !made
    of: [a:b,
         c]
  text: |
    a: @b
other:
  <<: *common
uwsgi:
  chdir: @x # remark
  stats: *:1717	# remark
  socket: [::1]:3031   # remark
  "logto": %(base)'s # it's a remark
  base: &base /srv
  home: *base
  processes: !!str 4
  pythonpath: [a:b, c]
  name: !name it
  module: |
    a.wsgi
  master: >- # folded
    true
  log-format: >2-
      - @a
    b: %(base)
  env: &variables
    - @a#b # remark
    - |-
      B=@b
    - *variable
  touch-reload: @end
"""


def test_what_is_yaml_is_taken_as_yaml_and_the_rest_as_it_stands(tmp_path: Path) -> None:
    reader = read(YAML_OF_SEVERAL, tmp_path, "a.yaml")

    assert {it: values(reader, it) for it in ("chdir", "stats", "socket", "logto")} == {
        "chdir": ["@x"], "stats": ["*:1717"], "socket": ["[::1]:3031"], "logto": ["/srv's"],
    }  # fmt: skip
    assert values(reader, "home") == values(reader, "base") == ["/srv"]
    assert values(reader, "processes") == ["4"]
    assert values(reader, "pythonpath") == ["a:b", "c"]
    assert values(reader, "name") == ["!name it"]
    assert values(reader, "module") == ["a.wsgi"]
    assert values(reader, "master") == ["true"]
    assert values(reader, "log-format") == ["  - @a\nb: /srv"]
    assert values(reader, "env") == ["@a#b", "B=@b", "*variable"]
    assert values(reader, "touch-reload") == ["@end"]


def test_standard_input_is_read_as_files_are(tmp_path: Path) -> None:
    done = subprocess.run(
        [*OSLOXIDE, "uwsgi", "--explain", "--ini", "-"],
        input=b"[uwsgi]\r\nmodule = a\r\nchdir = /caf\xe9\n", capture_output=True, timeout=60,
        env=environment(PYTHONIOENCODING="utf-8"), cwd=tmp_path, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert b"--chdir '/caf\xe9'" in done.stdout
    for closed in (False, True):
        done = subprocess.run(
            [*OSLOXIDE, "uwsgi", "--explain", "--ini", "-"], input=b"\xff\0", capture_output=True,
            preexec_fn=(lambda: os.close(0)) if closed else None, timeout=60, env=environment(),
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr, done.stderr


def test_conditions_of_a_yaml_file_are_followed(tmp_path: Path) -> None:
    reader = read(
        "uwsgi:\n  if-exists: /\n  name: there\n  endif: ''\n  if-env: UWSGI_TEST_ABSENT\n"
        "  name: never\n  endif:\n",
        tmp_path,
        "a.yaml",
    )

    assert values(reader, "name") == ["there"]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.yaml", "uwsgi:\n  env: [A=b, C=d\n", "{file}:3: is no YAML: "),
        ("a.yaml", "uwsgi:\n  env: 'A=b\n", "{file}:3: is no YAML: "),
        ("a.yaml", "uwsgi:\n\tmodule: a\n", "{file}:2: is no YAML: found character '\\t'"),
        ("a.yaml", "uwsgi:\n  env:\n    A: b\n", "{file}:3: env has neither a value nor a list"),
        ("a.yaml", "uwsgi: [a]\n", "{file}:1: uwsgi has no options"),
        ("a.yaml", "- a\n", "{file}:1: has no section"),
        ("a.yaml", "other:\n  a: b\n", "{file} has no section [uwsgi] (it has: [other])"),
        ("a.yaml", "uwsgi:\n  prcesses: 4\n", "{file}:2: option prcesses: is unknown"),
        ("a.yaml", "uwsgi:\n  gevent: 4\n", "{file}:2: option gevent: osloxide does not offer"),
        ("a.yaml", "uwsgi:\n  yaml: {file}\n", "circular include: {file}:uwsgi -> {file}:uwsgi"),
        ("a.yaml", "", "{file} has no section [uwsgi] (it has: none)"),
        ("a.json", "{{", "{file}:1: is no JSON: Expecting property name"),
        ("a.json", "[]", "{file}: has no section"),
        ("a.json", "[" * 100_000, "{file}: is no JSON: "),
        ("a.ini", "[uwsgi]\nname = a\0b\n", "{file} holds a NUL byte"),
        ("a.ini", "[uwsgi]\nprocesses = " + "9" * 5000, "is no whole number of at least 1"),
        ("a.xml", "<uwsgi><name>\udcff</name></uwsgi>", "{file}:1: is no XML: "),
        ("a.xml", '<?xml version="1.0" encoding="foo"?><uwsgi/>', "{file}:1: is no XML: unknown"),
        ("a.xml", '<?xml version="1.0" encoding="big5"?><uwsgi/>', "{file}:1: is no XML: multi"),
        ("a.xml", '<?xml version="1.0" encoding="base64"?><uwsgi/>', "{file}:1: is no XML: "),
        ("a.xml", '<?xml version="1.0" encoding="utf-16"?><uwsgi/>', "{file}:1: is no XML: "),
        ("a.json", '{{"uwsgi": {{"name": "a\\u0000b"}}}}', "{file}: 'name' holds a NUL byte"),
        ("a.json", '{{"uwsgi": {{"a\\u0000": "b"}}}}', "{file}: 'a\\x00' holds a NUL byte"),
        ("a.json", '{{"uwsgi": {{"chdir": ["\\ud800"]}}}}', "{file}: 'chdir' holds half a char"),
        ("a.yaml", 'uwsgi:\n  name: "a\\0b"\n', "{file}:2: 'name' holds a NUL byte"),
        ("a.yaml", 'uwsgi:\n  name: "\\UFFFFFFFF"\n', "{file}: is no YAML: "),
        ("a.yaml", 'uwsgi:\n  name: "\\U00110000"\n', "{file}: is no YAML: "),
        ("a.ini", "[uwsgi]\nname = @(/proc/self/cmdline)\n", "/proc/self/cmdline holds a NUL"),
        ("a.ini", "[uwsgi]\nfor-times = 99999999999\nendfor =\n", "{file}:2: for-times = 999"),
        ("a.ini", "[uwsgi]\nfor-times = ²\nendfor =\n", "{file}:2: for-times = ²: is no whole"),
        ("a.ini", "[uwsgi]\nif-hostname-match = (\nendif =\n", "{file}:2: if-hostname-match = (: "),
        ("a.yaml", "uwsgi:\n  name: \udcff\n", "{file}: is no YAML: "),
        ("a.json", '{{"uwsgi": 4}}', '{file}: "uwsgi" is no object'),
        ("a.json", '{{"uwsgi": {{"env": {{"A": "b"}}}}}}', "{file}: env has neither a string"),
        ("a.json", '{{"other": {{}}}}', "{file} has no section [uwsgi] (it has: [other])"),
        ("a.xml", "<uwsgi><module>a</uwsgi>", "{file}:1: is no XML: mismatched tag"),
        ("a.xml", "<a/>", "{file} has no section [uwsgi]"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><uwsgi><name>&b;</name></uwsgi>',
         "{file}:1: entities are not taken"),
        ("a.ini", "[uwsgi]\njson = /absent.json\n", "{file}:2: cannot read /absent.json"),
        ("a.ini", "[uwsgi]\nif-env = PATH\nname = a\nelse =\nname = b\nendif =\n",
         "{file}:2: if-env has an else, which uWSGI 2.0 does not know"),
    ],
)  # fmt: skip
def test_a_file_that_is_broken_is_named_with_its_line(
    tmp_path: Path, name: str, text: str, error: str
) -> None:
    file = tmp_path / name

    with pytest.raises(CommandError) as raised:
        Translation.of(read(text.format(file=file), tmp_path, name)).command_line()

    assert error.format(file=file) in str(raised.value)


# ---- placeholders


def test_a_placeholder_may_be_set_further_down_and_by_another_placeholder(tmp_path: Path) -> None:
    os.environ["UWSGI_TEST_NAME"] = "base"
    reader = read(
        "[uwsgi]\nchdir = %(base)/%(sub)\npidfile = %($(UWSGI_TEST_NAME))/pid\nsub = %(last)\n"
        "last = x\nbase = /srv\n",
        tmp_path,
        "site.ini",
    )
    del os.environ["UWSGI_TEST_NAME"]

    assert values(reader, "chdir") == ["/srv/x"]
    assert values(reader, "pidfile") == ["/srv/pid"]


@pytest.mark.parametrize(
    "lines",
    [
        ["name = %(other)", "other = a%(name)"],
        ["a = %(b)x", "b = %(a)y"],
        ["a = %(a)%(a)", "module = %(a)"],
        ["module = %(a)", "a = %(b)", "b = %(c)%(c)", "c = %(a)"],
    ],
)
def test_placeholders_in_a_circle_stay_as_they_are(tmp_path: Path, lines: list[str]) -> None:
    reader = read(
        "\n".join(["[uwsgi]", *lines, "chdir = %(base)", "base = /srv"]), tmp_path, "a.ini"
    )

    assert [f"{it.name} = {it.value}" for it in reader.settings] == [
        *lines, "chdir = /srv", "base = /srv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("link", "backwards"),
    [("%(a{0})%(a{0})", False), ("%(a{0})%(a{0})", True), ("%(a{0} a{0})", False)],
)
def test_a_value_that_grows_without_bound_is_refused(
    tmp_path: Path, link: str, backwards: bool
) -> None:
    lines = ["a0 = 1234567890", *(f"a{it + 1} = {link.format(it)}" for it in range(60))]
    text = "[uwsgi]\n" + "\n".join(reversed(lines) if backwards else lines)

    with pytest.raises(CommandError, match=r"a.ini:\d+: %\(.* makes the value longer than 131072"):
        read(text, tmp_path, "a.ini")


def test_a_chain_of_any_length_is_followed(tmp_path: Path) -> None:
    lines = [f"a{it} = %(a{it + 1})" for it in range(200)]

    assert values(read("\n".join(["[uwsgi]", *lines, "a200 = x"]), tmp_path, "a.ini"), "a0") == [
        "x"
    ]


def test_a_sum_of_a_number_of_many_digits_is_one_of_64_bits(tmp_path: Path) -> None:
    reader = read(f"[uwsgi]\na = {'9' * 5000}\nb = %(a + 0)\nc = %(a - a)\n", tmp_path, "a.ini")

    assert values(reader, "b") == [str(2**63 - 1)]
    assert values(reader, "c") == ["0"]


def test_sums_are_calculated_as_by_uwsgi(tmp_path: Path) -> None:
    reader = read(
        "[uwsgi]\nprocesses = 2\ncores = 8\njoined = %(processes cores + 2)\nless = %(1 - 3)\n"
        "divided = %(cores / 0)|%(cores / 3)|%(0 - 7 / 2)\nsteps = %(cores ++)|%(cores --)\n"
        "absent = %(nothing + 3)\n",
        tmp_path,
        "site.ini",
    )

    assert values(reader, "joined") == ["30"]
    assert values(reader, "less") == ["-2"]
    assert values(reader, "divided") == ["0|2|-3"]
    assert values(reader, "steps") == ["9|7"]
    assert values(reader, "absent") == ["3"]


def test_a_remark_behind_a_number_is_left_and_behind_a_path_is_part_of_it(tmp_path: Path) -> None:
    line = Translation.of(
        read(
            "[uwsgi]\nmodule = a\nhttp = :80\nprocesses = 4 ; as many as processors\n"
            "harakiri = 60\t# seconds\nmaster = true ; of course\npidfile = /run/a b ; c\n",
            tmp_path,
            "site.ini",
        )
    ).command_line()

    assert line[line.index("--workers") + 1] == "4"
    assert line[line.index("--request-timeout") + 1] == "60"
    assert "--master" in line
    assert line[line.index("--pid") + 1] == "/run/a b ; c"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:3031 # for nginx", "127.0.0.1:3031"),
        ("*:80 ; all", ":80"),
        ("[::]:80\t; all", "[::]:80"),
    ],
)
def test_a_remark_behind_a_port_is_left(tmp_path: Path, text: str, place: str) -> None:
    reader = read(f"[uwsgi]\nmodule = a\nhttp-socket = {text}\n", tmp_path, "site.ini")
    line = Translation.of(reader).command_line()

    assert line[line.index("--bind") + 1] == f"http://{place}"


def test_max_fd_is_the_limit_of_open_files_of_the_service(tmp_path: Path) -> None:
    (tmp_path / "limited.py").write_text(
        "import resource, sys\nprint(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\nsys.exit(0)\n"
    )
    done = run_command(
        [*OSLOXIDE, "uwsgi", "--http-socket", "127.0.0.1:0", "-w", "limited", "--max-fd", "777"],
        environ=environment(), cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 3, done.stderr
    assert "777" in done.stdout.splitlines()


# ---- environment and command line


def explained(
    directory: Path, *words: str, status: int = 0, **variables: str
) -> tuple[list[str], str]:
    done = run_command(
        [*OSLOXIDE, "uwsgi", "--explain", *words],
        environ={**environment(), **variables}, cwd=directory,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stdout.splitlines() or [""]
    return lines[:-1], lines[-1] + done.stderr


def test_variables_of_the_environment_are_options_that_the_command_line_wins_over(
    tmp_path: Path,
) -> None:
    (tmp_path / "site.ini").write_text("[uwsgi]\nmodule = a\nthreads = %(mine)\n")
    rows, line = explained(
        tmp_path, "-p", "7",
        UWSGI_INI="site.ini", UWSGI_PROCESSES="4", UWSGI_HTTP_SOCKET=":80", UWSGI_MASTER="1",
        UWSGI_MINE="3", UWSGI_RELOADS="2", UWSGI_HARAKIRI="",
        UWSGI_PORT="tcp://10.0.0.1:80", UWSGI_LOG_SERVICE_HOST="10.0.0.1", UWSGI_LOG_DIR="/log",
    )  # fmt: skip

    assert line.startswith("osloxide serve a --bind http://:80 --threads 3")
    assert "--workers 7" in line
    assert "--master" in line
    assert "--request-timeout" not in line
    assert any("environment variable UWSGI_PROCESSES" in row for row in rows)


def test_a_variable_that_is_refused_is_named(tmp_path: Path) -> None:
    _, line = explained(tmp_path, "-w", "a", status=1, UWSGI_GEVENT="100")

    assert "osloxide serve a" in line
    rows, _ = explained(tmp_path, "-w", "a", status=1, UWSGI_GEVENT="100")
    assert any("environment variable UWSGI_GEVENT" in row and "refused" in row for row in rows)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-Mp", "4"], "--master --workers 4"),
        (["-Mp4"], "--master --workers 4"),
        (["-ML", "-C"], "--master --no-access-log --socket-mode 666"),
        (["-C600", "-p=5"], ""),
        (["--proc", "4"], ""),
        (["--thunder", "--http-timeo=5"], "--client-timeout 5"),
        (["--master", "--workers=3"], "--master --workers 3"),
    ],
)
def test_options_are_written_as_getopt_has_them(
    tmp_path: Path, words: list[str], part: str
) -> None:
    given = [*words, "-w", "a", "--http-socket", ":80"]
    if part:
        assert part in explained(tmp_path, *given)[1]
    else:
        assert "osloxide: " in explained(tmp_path, *given, status=1)[1] or True


def test_a_name_that_is_cut_short_is_refused_where_it_may_be_several(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as raised:
        uwsgi.run(["--explain", "--proc", "4"])

    assert "option --proc may be " in str(raised.value)
    assert "processes" in str(raised.value)


def test_every_letter_of_uwsgi_names_an_option() -> None:
    assert [it for it in options.SHORT.values() if options.find(it) is None] == []
