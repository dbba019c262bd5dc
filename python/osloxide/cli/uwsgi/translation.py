"""From uWSGI's settings to the command line of ``osloxide serve`` that means the same.

Owns the conversion of each value, and what several options mean together. Reads no file and starts
nothing: the result is a list of words, which ``osloxide serve`` checks as if a user had typed them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from osloxide.cli import contradictions
from osloxide.cli.errors import CommandError
from osloxide.cli.uwsgi import log_format, options
from osloxide.cli.uwsgi.options import Kind, Verdict
from osloxide.cli.uwsgi.reader import Reader, Setting
from osloxide.server.numbers import whole_number

_MOST = 10**18 - 1
"""More fits into no integer of uWSGI's."""
_FALSE = ("false", "off", "no", "0")
_CALLED = "uwsgi"
"""What an application that uWSGI started finds in ``sys.argv[0]``."""

_GRACEFUL_HOOK = ["unix_signal:15", "gracefully_kill_them_all"]
"""What SIGTERM always does here."""

_FLAGS = (
    "--master",
    "--no-access-log",
    "--no-keep-alive",
    "--proxy-protocol",
    "--reload",
    "--stats-http",
)

_ROUTED = {
    "route-user-agent": "user-agent",
    "route-uri": "uri",
    "route": "path",
    "route-remote-addr": "client",
}


@dataclass(frozen=True)
class Row:
    """What becomes of one setting."""

    setting: Setting
    verdict: str
    text: str


@dataclass
class Translation:
    """Collects what the settings say.

    :ivar rows: one for each setting, in their order.
    :ivar problems: what keeps the service from being started.
    :ivar open_files: RLIMIT_NOFILE, where it is asked for.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[CommandError] = field(default_factory=list)
    _words: list[str] = field(default_factory=list)
    _single: dict[str, str] = field(default_factory=dict)
    _applications: dict[str, str] = field(default_factory=dict)
    _attribute: str = ""
    _sockets: list[tuple[str, str]] = field(default_factory=list)
    _addresses: list[tuple[str, str]] = field(default_factory=list)
    _tls: tuple[str, ...] = ()
    _timeouts: dict[str, str] = field(default_factory=dict)
    _threads: str = "1"
    _jitters: dict[str, int] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)
    _is_abstract: bool = False
    open_files: int | None = None
    _logs_as_user: bool = False
    _time_format: str | None = None
    _directory: str = ""

    @classmethod
    def of(cls, reader: Reader) -> Translation:
        """Translate all settings; problems are collected, not raised."""
        made = cls()
        made._time_format = log_format.time_format((it.name, it.value) for it in reader.settings)
        directories = [it.value for it in reader.settings if it.name == "chdir"]
        made._directory = directories[-1] if directories else ""
        for setting in reader.settings:
            made._take(setting, setting.name in reader.used)
        return made

    def command_line(self, *, is_complete: bool = True) -> list[str]:
        """The words behind ``osloxide serve``.

        :param is_complete: whether application and address must be there; else a word in capitals
            stands for what another file, or the command line, is to give.
        :raises CommandError: the settings cannot be honoured; the first problem.
        """
        if self.problems and is_complete:
            raise self.problems[0]
        application, listeners = self._application(), self._listeners()
        if is_complete and "--mount" in self._single and len(self._applications) > 1:
            raise CommandError(
                "mount beside module, wsgi-file or paste: one application is served; leave one of "
                "them out, or name both in a paste composite: paste = config:FILE"
            )
        if is_complete and not application:
            raise CommandError(
                "no application: give module = PACKAGE.MODULE:APP, wsgi-file = SCRIPT or "
                "paste = config:FILE"
            )
        if is_complete and not listeners and "LISTEN_FDS" not in os.environ:
            raise CommandError(
                "no address to listen on: give http-socket, https-socket or socket = HOST:PORT"
            )
        if not is_complete and not listeners:
            listeners = ["--bind", "ADDRESS"]
        words = [application or "APPLICATION", *listeners, "--threads", self._threads]
        words += ["--program", _CALLED, "--uwsgi-module"]
        if "http-timeout" in self._timeouts:
            self._single["--client-timeout"] = self._timeouts["http-timeout"]
        elif "socket-timeout" in self._timeouts:
            self._single["--client-timeout"] = self._timeouts["socket-timeout"]
        if self._logs_as_user and "--log-file-owner" not in self._single and self._ids:
            owner = self._ids.get("uid", ""), self._ids.get("gid", "")
            self._single["--log-file-owner"] = ":".join(owner).rstrip(":")
        # uWSGI adds the delta once for each worker before this one.
        for limit, delta in self._jitters.items():
            if int(self._single.get(f"--{limit}") or 0) and delta:
                jitter = delta * int(self._single.get("--workers") or 1)
                self._single[f"--{limit}-jitter"] = str(jitter)
        if "--no-access-log" in self._single and "--access-log" in self._single:
            del self._single["--access-log"], self._single["--access-logformat"]
        if "--access-log" in self._single:
            self._single["--access-log"] = self._single.get("--log-file") or "-"
        # Files of uWSGI name options that do nothing beside others.
        given = {it.partition("=")[0] for it in (*words, *self._single, *self._words)}
        for name in contradictions.without_effect(given):
            self._single.pop(name, None)
            self._words = [it for it in self._words if it.partition("=")[0] != name]
        for name, value in self._single.items():
            if not value:
                # A blank value of any other option is none.
                words += [name] if name in _FLAGS else []
            elif value.startswith("-"):
                words.append(f"{name}={value}")
            else:
                words += [name, value]
        return [*words, *self._words]

    # ---- one setting

    def _take(self, setting: Setting, is_variable: bool) -> None:
        option = options.find(setting.name)
        # A name of a file's own may begin as a family of options does: log-dir, static-root.
        if is_variable and setting.name not in options.NAMES:
            self._row(setting, "honoured", "a variable of the file's own; uwsgi.opt has it")
            self._variable(setting)
            return
        if option is None:
            self._problem(setting, unknown(setting.name))
            return
        if option.kind is Kind.FLAG and setting.value.lower() in _FALSE:
            self._row(setting, option.verdict.value, f"off: {option.text}")
            return
        if option.verdict is Verdict.REFUSED:
            self._problem(setting, f"osloxide does not offer this; {option.text}")
            return
        if option.verdict is Verdict.HONOURED:
            rule: Callable[[Setting], None] = getattr(self, f"_{option.rule}")
            try:
                rule(setting)
            except CommandError as error:
                self.problems.append(error)
                self._row(setting, "refused", str(error).rpartition(": ")[2])
                return
        self._row(setting, option.verdict.value, option.text)

    def _row(self, setting: Setting, verdict: str, text: str) -> None:
        self.rows.append(Row(setting, verdict, text))

    def _problem(self, setting: Setting, text: str) -> None:
        self.problems.append(CommandError(f"{setting.source}: option {setting.name}: {text}"))
        self._row(setting, "refused", text)

    # ---- rules: the application

    def _module(self, setting: Setting) -> None:
        self._applications["module"] = setting.value

    def _wsgi_file(self, setting: Setting) -> None:
        self._applications["file"] = setting.value

    def _paste(self, setting: Setting) -> None:
        text = setting.value
        self._applications["paste"] = text if text.startswith("config:") else f"config:{text}"

    def _ini_paste(self, setting: Setting) -> None:
        self._applications["paste"] = f"config:{setting.value}"

    def _mount(self, setting: Setting) -> None:
        prefix, equals, target = setting.value.partition("=")
        if not equals or not target or not prefix.startswith("/"):
            raise setting.refuse("is no /PREFIX=APPLICATION")
        if "--mount" in self._single:
            raise setting.refuse(
                "one application is mounted; mount several in the proxy in front, or in a paste "
                "composite: paste = config:FILE"
            )
        self._single["--mount"] = prefix
        if target.startswith("config:"):
            kind = "paste"
        else:
            kind = "file" if "/" in target or target.endswith((".py", ".wsgi")) else "module"
        self._applications[kind] = target

    def _callable(self, setting: Setting) -> None:
        self._attribute = setting.value

    def _application(self) -> str:
        for kind in ("module", "file", "paste"):
            if (found := self._applications.get(kind)) is None:
                continue
            if kind == "paste" or not self._attribute:
                return f"./{found}" if kind == "file" and "/" not in found else found
            return f"{found.partition(':')[0] if kind == 'module' else found}:{self._attribute}"
        return ""

    def _pyargv(self, setting: Setting) -> None:
        self._single["--pyargv"] = setting.value

    def _pythonpath(self, setting: Setting) -> None:
        before = self._single.get("--pythonpath")
        self._single["--pythonpath"] = f"{before},{setting.value}" if before else setting.value

    def _venv(self, setting: Setting) -> None:
        self._single["--venv"] = self._place(setting.value)

    def _chdir(self, setting: Setting) -> None:
        self._single["--chdir"] = setting.value

    def _env(self, setting: Setting) -> None:
        if "=" not in setting.value.lstrip("="):
            raise setting.refuse("is no NAME=VALUE")
        self._words.append(f"--env={setting.value}")

    def _unenv(self, setting: Setting) -> None:
        self._words.append(f"--unset-env={setting.value}")

    def _variable(self, setting: Setting) -> None:
        self._words.append(f"--uwsgi-option={setting.name}={setting.value}")

    def _name(self, setting: Setting) -> None:
        self._single["--name"] = setting.value

    def _include(self, setting: Setting) -> None:
        """Done by the reader."""

    # ---- rules: addresses

    def _http(self, setting: Setting) -> None:
        self._addresses.append(("http", self._address(setting)))

    def _https(self, setting: Setting) -> None:
        place, *files = setting.value.split(",")
        if len(files) < 2:
            raise setting.refuse("names no certificate and key; give ADDRESS,CERTIFICATE,KEY")
        if len(files) > 4:
            raise setting.refuse("has more than ADDRESS,CERTIFICATE,KEY,CIPHERS,CA")
        if self._tls and self._tls != tuple(files):
            raise setting.refuse("has other files than the address before it; start two services")
        self._tls = tuple(files)
        for name, file in zip(("--certfile", "--keyfile"), files[:2], strict=True):
            self._single[name] = self._place(file)
        if len(files) > 2 and files[2]:
            self._single["--ciphers"] = files[2]
        if len(files) > 3 and files[3]:
            # uWSGI: "!" demands what is otherwise only asked for.
            self._single["--ca-certs"] = self._place(files[3].removeprefix("!"))
        place = self._address(Setting(setting.name, place, setting.source))
        self._addresses.append(("https", place))

    def _socket(self, setting: Setting) -> None:
        self._sockets.append(("uwsgi", self._address(setting)))

    def _protocol(self, setting: Setting) -> None:
        if setting.value not in ("http", "uwsgi"):
            raise setting.refuse("is a protocol that is not spoken; give http or uwsgi")
        self._ids["protocol"] = setting.value

    def _chmod_socket(self, setting: Setting) -> None:
        self._single["--socket-mode"] = setting.value or "666"

    def _chown_socket(self, setting: Setting) -> None:
        self._single["--socket-owner"] = setting.value

    def _abstract_socket(self, _setting: Setting) -> None:
        self._is_abstract = True

    def _umask(self, setting: Setting) -> None:
        self._single["--umask"] = setting.value

    def _address(self, setting: Setting) -> str:
        """An address of uWSGI as ``--bind`` writes it."""
        text = setting.value
        if not text:
            raise setting.refuse("is blank; give HOST:PORT, or the path of a unix socket")
        if text.startswith("="):
            raise setting.refuse("names a shared socket; give the address itself")
        if text.startswith("fd://"):
            return text
        if text.startswith("@"):
            return f"unix:{text}"
        # uWSGI takes the port's digits and leaves what follows; files in the field have remarks
        # there.
        found = re.fullmatch(r"([^/]*):(\d+)(?:\s+[;#].*)?", text)
        if found is not None:
            return f"{'' if found[1] == '*' else found[1]}:{found[2]}"
        return f"unix:{self._place(text.removeprefix('unix:'))}"

    def _place(self, path: str) -> str:
        """Where uWSGI has a relative path begin that it uses after it has entered ``chdir``."""
        return os.path.abspath(os.path.join(self._directory, path))

    def _listen(self, setting: Setting) -> None:
        self._single["--backlog"] = _number(setting, 1)

    def _listeners(self) -> list[str]:
        protocol = self._ids.get("protocol", "uwsgi")
        sockets = [(protocol, place) for _, place in self._sockets]
        words = []
        for scheme, place in [*self._addresses, *sockets]:
            named = place
            if self._is_abstract and place.startswith("unix:/"):
                named = "unix:@" + place.removeprefix("unix:")
            words += ["--bind", f"{scheme}://{named}"]
        if all(scheme == "uwsgi" for scheme, _ in [*self._addresses, *sockets]):
            # uWSGI looks for the header on its HTTP sockets alone.
            self._single.pop("--proxy-protocol", None)
            self._single.pop("--proxy-allow-from", None)
        return words

    def _keepalive(self, setting: Setting) -> None:
        if setting.value.lower() in _FALSE:
            self._single["--no-keep-alive"] = ""

    def _client_timeout(self, setting: Setting) -> None:
        self._timeouts[setting.name] = _number(setting, 0)

    def _buffer_size(self, setting: Setting) -> None:
        size = _number(setting, 1)
        self._single["--limit-request-line"] = self._single["--limit-request-field-size"] = size

    def _limit_post(self, setting: Setting) -> None:
        self._single["--limit-request-body"] = _number(setting, 0)

    def _proxy_protocol(self, _setting: Setting) -> None:
        self._single["--proxy-protocol"] = ""
        self._single["--proxy-allow-from"] = "*"

    def _max_vars(self, setting: Setting) -> None:
        self._single["--limit-request-fields"] = _number(setting, 1)

    # ---- rules: processes

    def _master(self, _setting: Setting) -> None:
        self._single["--master"] = ""

    def _workers(self, setting: Setting) -> None:
        self._single["--workers"] = _number(setting, 1)

    def _set_threads(self, setting: Setting) -> None:
        self._threads = _number(setting, 1)

    def _max_fd(self, setting: Setting) -> None:
        self.open_files = int(_number(setting, 1))

    def _harakiri(self, setting: Setting) -> None:
        seconds = int(_number(setting, 0))
        self._single["--request-timeout"] = str(seconds)
        # For what no answer helps against: an interpreter that is held, a process that is stopped.
        self._single["--timeout"] = str(2 * seconds)

    def _mercy(self, setting: Setting) -> None:
        self._single["--graceful-timeout"] = _number(setting, 0)

    def _max_requests(self, setting: Setting) -> None:
        self._single["--max-requests"] = _number(setting, 0)

    def _lifetime(self, setting: Setting) -> None:
        self._single["--max-worker-lifetime"] = _number(setting, 0)

    def _deltas(self, setting: Setting) -> None:
        self._jitters[setting.name.removesuffix("-delta")] = int(_number(setting, 0))

    def _memory(self, setting: Setting) -> None:
        kind = setting.name.rpartition("-")[2]
        self._single["--max-worker-memory"] = f"{kind}:{_number(setting, 0)}M"

    def _touch(self, setting: Setting) -> None:
        self._words.append(f"--touch-reload={self._place(setting.value)}")

    def _autoreload(self, setting: Setting) -> None:
        if setting.value.lower() not in _FALSE:
            self._single["--reload"] = ""

    def _pidfile(self, setting: Setting) -> None:
        # The plain one is written before chdir, the others are not.
        is_early = setting.name == "pidfile"
        place = os.path.abspath(setting.value) if is_early else self._place(setting.value)
        self._single["--pid"] = place

    def _uid(self, setting: Setting) -> None:
        self._ids["uid"] = self._single["--user"] = setting.value

    def _gid(self, setting: Setting) -> None:
        self._ids["gid"] = self._single["--group"] = setting.value

    def _hook_master_start(self, setting: Setting) -> None:
        words = setting.value.split()
        # Templates in the field have the second word behind a tab and a number sign.
        if [word for word in words if word != "#"] != _GRACEFUL_HOOK:
            raise setting.refuse("osloxide runs no hooks; use ExecStartPre= of the service unit")

    def _procname(self, setting: Setting) -> None:
        self._single["--title-prefix"] = setting.value

    def _procname_spaced(self, setting: Setting) -> None:
        self._single["--title-prefix"] = f"{setting.value} "

    # ---- rules: logs and insight

    def _logto(self, setting: Setting) -> None:
        self._single["--log-file"] = os.path.abspath(setting.value) if setting.value else ""
        self._logs_as_user = self._logs_as_user or setting.name == "logto2"

    def _logfile_chmod(self, setting: Setting) -> None:
        self._single["--log-file-mode"] = setting.value

    def _logfile_chown(self, setting: Setting) -> None:
        if ":" in setting.value or setting.value not in ("", "true", "1"):
            self._single["--log-file-owner"] = setting.value
        else:
            self._logs_as_user = True

    def _logger(self, setting: Setting) -> None:
        kind, _, path = setting.value.partition(":")
        if kind == "stdio":
            return
        if kind != "file" or not path:
            raise setting.refuse("is no logger here; give file:PATH, or osloxide's --log-config")
        self._single["--log-file"] = self._place(path)

    def _disable_logging(self, _setting: Setting) -> None:
        self._single["--no-access-log"] = ""

    def _log_status(self, setting: Setting) -> None:
        wanted = setting.name.removeprefix("log-")
        before = self._single.get("--access-log-status")
        self._single["--access-log-status"] = f"{before},{wanted}" if before else wanted

    def _log_format(self, setting: Setting) -> None:
        try:
            found, is_native = log_format.translated(setting.value, self._time_format)
        except ValueError as error:
            raise setting.refuse(str(error)) from error
        if is_native:
            self._single["--access-log"] = "-"
        self._single["--access-logformat"] = found

    def _donotlog(self, setting: Setting) -> None:
        pattern, _, action = setting.value.rpartition(" ")
        if action.rstrip(":") != "donotlog" or not pattern.strip():
            raise setting.refuse("osloxide routes nothing but REGEX donotlog:")
        self._words.append(f"--no-access-log-for={_ROUTED[setting.name]}={pattern.strip()}")

    def _stats(self, setting: Setting) -> None:
        self._single["--stats"] = self._address(setting)

    def _stats_http(self, _setting: Setting) -> None:
        self._single["--stats-http"] = ""

    # ---- rules: responses

    def _add_header(self, setting: Setting) -> None:
        name, colon, value = setting.value.partition(":")
        if not colon or not name.strip():
            raise setting.refuse("is no NAME: VALUE")
        if name.strip().lower() == "connection":
            wanted = value.strip().lower()
            if wanted not in ("close", "keep-alive"):
                raise setting.refuse("osloxide keeps connections by itself; take it out")
            if wanted == "close":
                self._single["--no-keep-alive"] = ""
            return
        self._words.append(f"--add-header={name.strip()}: {value.strip()}")

    def _rem_header(self, setting: Setting) -> None:
        if setting.value.lower() != "content-length":
            self._words.append(f"--remove-header={setting.value}")

    def _static_map(self, setting: Setting) -> None:
        prefix, equals, directory = setting.value.partition("=")
        if not equals or not directory or not prefix.startswith("/"):
            raise setting.refuse("is no /PREFIX=DIRECTORY")
        self._words.append(f"--static-map={prefix}={self._place(directory)}")


def _number(setting: Setting, least: int) -> str:
    # uWSGI takes the number and leaves what follows; files in the field have remarks there.
    text = re.sub(r"\s+[;#].*", "", setting.value)
    number = whole_number(text, _MOST)
    if number is None or number < least:
        raise setting.refuse(f"is no whole number of at least {least}")
    return str(number)


def unknown(name: str) -> str:
    """What is said of an option that neither uWSGI nor the file knows."""
    import difflib

    near = difflib.get_close_matches(name.replace("_", "-"), options.BY_NAME, 1, 0.75)
    hint = f"do you mean {near[0]}? Correct it" if near else "correct it"
    return (
        f"is unknown; {hint}, or, where it is a variable of your own, write "
        f"set-placeholder = {name}=VALUE"
    )
