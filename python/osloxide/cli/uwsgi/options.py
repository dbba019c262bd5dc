"""The options of uWSGI that osloxide knows, and what becomes of each.

Owns the one table that the command, ``--explain`` and docs/uwsgi.md share. Each option is honoured
by an option of ``osloxide serve``, needless because osloxide behaves so anyway or has no such part,
or refused with the remedy. How values are converted is osloxide.cli.uwsgi.translation's part.

Rules: uWSGI 2.0's options by their names.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """What osloxide makes of an option."""

    HONOURED = "honoured"
    NEEDLESS = "needless"
    REFUSED = "refused"


class Kind(enum.Enum):
    """What an option takes on a command line."""

    FLAG = "flag"
    VALUE = "value"
    OPTIONAL = "optional"


@dataclass(frozen=True)
class Option:
    """One option, or several of one meaning.

    :param names: as uWSGI spells them.
    :param rule: HONOURED: the conversion in osloxide.cli.uwsgi.translation.
    :param text: what osloxide does, why the option is needless, or the remedy.
    """

    names: tuple[str, ...]
    kind: Kind
    verdict: Verdict
    text: str
    rule: str = ""


_FLAG, _VALUE, _OPTIONAL = Kind.FLAG, Kind.VALUE, Kind.OPTIONAL


def _honoured(names: str, rule: str, text: str, kind: Kind = _VALUE) -> Option:
    return Option(tuple(names.split()), kind, Verdict.HONOURED, text, rule)


def _needless(names: str, text: str, kind: Kind = _FLAG) -> Option:
    return Option(tuple(names.split()), kind, Verdict.NEEDLESS, text)


def _refused(names: str, text: str, kind: Kind = _VALUE) -> Option:
    return Option(tuple(names.split()), kind, Verdict.REFUSED, text)


SHORT = {
    "s": "socket", "p": "processes", "t": "harakiri", "x": "xml", "S": "set", "d": "daemonize",
    "l": "listen", "v": "max-vars", "b": "buffer-size", "m": "memory-report", "C": "chmod-socket",
    "T": "enable-threads", "i": "single-interpreter", "M": "master", "r": "reaper",
    "R": "max-requests", "z": "socket-timeout", "L": "disable-logging", "y": "yaml", "w": "module",
    "H": "virtualenv", "O": "optimize", "Q": "spooler", "a": "abstract-socket", "c": "cgi-mode",
    "j": "json",
}  # fmt: skip
"""uWSGI's single letters."""

TABLE: tuple[Option, ...] = (
    # ---- the application
    _honoured("module wsgi", "module", "MODULE:APP; wins over wsgi-file and paste, as in uWSGI"),
    _honoured("wsgi-file file", "wsgi_file", "the script's path"),
    _honoured("callable", "callable", "the attribute in MODULE:APP or PATH:APP"),
    _honoured("paste", "paste", "config:FILE#NAME"),
    _honoured("ini-paste ini-paste-logged", "ini_paste", "config:FILE; its [uwsgi] is read too"),
    _needless("paste-logger", "with paste, the file's [loggers] are configured by the application"),
    _honoured("pyargv", "pyargv", "--pyargv"),
    _honoured("pythonpath python-path pp", "pythonpath", "--pythonpath; may be repeated"),
    _honoured("virtualenv home venv pyhome", "venv", "--venv; needless where it is osloxide's own"),
    _honoured("chdir", "chdir", "--chdir"),
    _honoured("env", "env", "--env; the whole value, semicolons included"),
    _honoured("unenv", "unenv", "--unset-env"),
    _honoured("start-time", "variable", "a variable; uwsgi.opt has it"),
    _honoured("name", "name", "--name"),
    _needless("no-default-app", "one application is served; mount says where"),
    _needless("need-app", "an application that cannot be loaded always ends the start, status 3"),
    _needless("single-interpreter", "there is one interpreter in a process"),
    _needless("lazy-apps lazy", "each worker loads the application, unless --warm says so"),
    _needless("strict", "an unknown option is always an error"),
    _needless("plugin plugins need-plugin need-plugins", "nothing has to be loaded", _VALUE),
    _needless("plugin-dir plugins-dir", "nothing has to be loaded", _VALUE),
    _needless("autoload", "nothing has to be loaded"),
    _needless("reload-os-env", "a reload starts from the environment of the start"),
    _honoured("mount", "mount", "the application, and --mount"),
    _needless("manage-script-name", "what is mounted has its SCRIPT_NAME"),
    _needless("optimize", "set PYTHONOPTIMIZE", _VALUE),
    # ---- addresses
    _honoured("http http-socket http11-socket", "http", "--bind http://ADDRESS"),
    _honoured("https https-socket", "https", "--bind https://, --certfile, --keyfile, --ciphers"),
    _honoured("socket uwsgi-socket", "socket", "--bind uwsgi://ADDRESS"),
    _honoured("protocol socket-protocol", "protocol", "http or uwsgi for all of socket"),
    _honoured("chmod-socket chmod", "chmod_socket", "--socket-mode; blank = 666", _OPTIONAL),
    _honoured("chown-socket", "chown_socket", "--socket-owner"),
    _honoured("abstract-socket", "abstract_socket", "unix:@NAME for all sockets", _FLAG),
    _honoured("umask", "umask", "--umask"),
    _honoured("listen", "listen", "--backlog"),
    _needless("reuse-port", "all workers share one listening socket"),
    _needless("so-keepalive tcp-nodelay", "always set"),
    _needless("no-defer-accept", "TCP_DEFER_ACCEPT is not used"),
    _needless("thunder-lock", "the kernel wakes one worker for each connection"),
    _needless("http-processes http-workers", "there is no router process", _VALUE),
    _needless("http-auto-chunked", "an answer without a length is always chunked"),
    _needless("http-chunked-input", "a chunked request body is always read"),
    _needless("http-raw-body", "wsgi.input always has the whole body"),
    _needless("http-manage-expect", "100-continue is always answered", _OPTIONAL),
    _needless("http-manage-source http-server-name-as-http-host", "no router rewrites a request"),
    _needless("http-connect-timeout", "there is no router that connects", _VALUE),
    _needless("http-headers-timeout", "http-timeout and socket-timeout hold for headers", _VALUE),
    _needless("http-buffer-size", "there is no router that buffers", _VALUE),
    _needless("http-modifier1 http-socket-modifier1", "there are no modifiers", _VALUE),
    _honoured("http-keepalive", "keepalive", "kept; 0 = --no-keep-alive", _OPTIONAL),
    _honoured("http-timeout", "client_timeout", "--client-timeout"),
    _honoured("socket-timeout", "client_timeout", "--client-timeout, unless http-timeout is set"),
    _honoured("buffer-size", "buffer_size", "--limit-request-line, --limit-request-field-size"),
    _honoured("max-vars", "max_vars", "--limit-request-fields"),
    _honoured("enable-proxy-protocol http-enable-proxy-protocol", "proxy_protocol",
              "--proxy-protocol, from every address as in uWSGI", _FLAG),
    _honoured("limit-post", "limit_post", "--limit-request-body"),
    _needless("chunked-input-limit", "bodies stream; no chunk is kept in memory", _VALUE),
    _needless("chunked-input-timeout", "socket-timeout holds for bodies", _VALUE),
    _needless("wsgi-manage-chunked-input", "wsgi.input always ends where a chunked body ends"),
    _needless("post-buffering", "bodies stream", _VALUE),
    _needless("post-buffering-bufsize", "bodies stream", _VALUE),
    _needless("ssl-sessions-use-cache ssl-sessions-timeout", "TLS tickets resume", _OPTIONAL),
    _needless("ssl-enable-tlsv1", "TLS 1.2 and 1.3 are spoken, never less"),
    # ---- processes
    _honoured("master", "master", "--master", _FLAG),
    _honoured("max-fd", "max_fd", "the limit of open files, as ulimit -n and LimitNOFILE= set it"),
    _honoured("processes workers", "workers", "--workers"),
    _honoured("threads", "set_threads", "--threads; 1 where it is not set, as in uWSGI"),
    _needless("enable-threads", "threads of the application always run"),
    _needless("enabled-threads",
              "no option of uWSGI, which ignores it; threads of the application always run"),
    _needless("no-threads-wait", "a stop waits for requests, not for the application's threads"),
    _needless("threads-stacksize threads-stack-size", "memory is reserved, not used", _VALUE),
    _needless("thread-stacksize thread-stack-size", "memory is reserved, not used", _VALUE),
    _needless("cheaper cheaper-initial cheaper-step", "all workers run from the start", _VALUE),
    _needless("cheaper-algo cheaper-overload", "all workers run from the start", _VALUE),
    _honoured("harakiri", "harakiri",
              "--request-timeout: 504, and the worker lives on; twice that is --timeout"),
    _needless("harakiri-verbose", "the traceback of a request that takes too long is logged"),
    _needless("harakiri-graceful-timeout", "the thread alone is interrupted", _VALUE),
    _needless("harakiri-graceful-signal", "the thread alone is interrupted", _VALUE),
    _needless("harakiri-queue-threshold", "harakiri holds whatever waits", _VALUE),
    _honoured("worker-reload-mercy reload-mercy", "mercy", "--graceful-timeout"),
    _honoured("max-requests", "max_requests", "--max-requests"),
    _honoured("max-requests-delta", "deltas", "--max-requests-jitter; needs max-requests"),
    _honoured("max-worker-lifetime", "lifetime", "--max-worker-lifetime"),
    _honoured("max-worker-lifetime-delta", "deltas",
              "--max-worker-lifetime-jitter; needs max-worker-lifetime"),
    _honoured("reload-on-rss evil-reload-on-rss", "memory",
              "--max-worker-memory rss:SIZE, in MiB; no request is lost by it"),
    _honoured("reload-on-pss", "memory", "--max-worker-memory pss:SIZE, in MiB"),
    _honoured("reload-on-uss", "memory", "--max-worker-memory uss:SIZE, in MiB"),
    _needless("min-worker-lifetime", "a worker that keeps dying is forked with back-off", _VALUE),
    _honoured("touch-reload touch-workers-reload touch-chain-reload", "touch", "--touch-reload"),
    _honoured("py-autoreload py-auto-reload python-autoreload python-auto-reload", "autoreload",
              "--reload; 0 = off"),
    _needless("die-on-term", "SIGTERM always stops the service"),
    _needless("exit-on-reload", "a reload replaces the workers, and the parent stays"),
    _needless("no-orphans", "workers leave when their parent is gone"),
    _needless("reaper", "children of the container are always reaped by process 1"),
    _needless("vacuum", "the pid file is removed; a socket's file is replaced at the next start"),
    _needless("close-on-exec close-on-exec2", "descriptors are always close-on-exec"),
    _needless("py-call-osafterfork py-call-uwsgi-fork-hooks", "workers are forked by os.fork()"),
    _needless("skip-atexit skip-atexit-teardown", "a stop runs atexit functions"),
    _needless("cpu-affinity", "CPUAffinity= of the service unit", _VALUE),
    _honoured("pidfile safe-pidfile pidfile2 safe-pidfile2", "pidfile", "--pid"),
    _honoured("uid", "uid", "--user; only root can change it"),
    _honoured("gid", "gid", "--group; only root can change it"),
    _needless("no-initgroups", "the groups of --user are taken"),
    _needless("apparmor-profile", "AppArmorProfile= of the service unit", _VALUE),
    _honoured("hook-master-start", "hook_master_start",
              "needless for unix_signal:15 gracefully_kill_them_all, what SIGTERM always does"),
    _honoured("procname-prefix", "procname", "--title-prefix"),
    _honoured("procname-prefix-spaced", "procname_spaced", "--title-prefix, with a space"),
    _honoured("procname", "procname_spaced", "--title-prefix, with a space"),
    _needless("procname-append procname-master", "titles name the service and the slot", _VALUE),
    _needless("auto-procname", "titles are set where setproctitle is installed"),
    # ---- logs and insight
    _honoured("logto logto2 log-file", "logto", "--log-file; logto2: --log-file-owner too"),
    _honoured("logfile-chmod", "logfile_chmod", "--log-file-mode"),
    _honoured("logfile-chown", "logfile_chown", "--log-file-owner", _OPTIONAL),
    _honoured("logger req-logger", "logger", "file:PATH is --log-file; others are refused"),
    _honoured("disable-logging", "disable_logging", "--no-access-log", _FLAG),
    _honoured("log-4xx log-5xx", "log_status", "--access-log-status", _FLAG),
    _honoured("log-format logformat", "log_format",
              "--access-logformat; --access-log too where that alone has a key, see above"),
    _honoured("route-user-agent", "donotlog", "REGEX donotlog: is --no-access-log-for"),
    _honoured("route-uri route", "donotlog", "REGEX donotlog: is --no-access-log-for"),
    _honoured("route-remote-addr", "donotlog", "REGEX donotlog: is --no-access-log-for"),
    _honoured("log-format-strftime logformat-strftime", "include",
              "%(ftime) of log-format is written as log-date says", _FLAG),
    _needless("log-x-forwarded-for", "client_ip is the client's, behind proxies too"),
    _needless("log-reopen", "SIGUSR1 opens log files again"),
    _needless("log-date logdate", "lines begin with the time; see log-format-strftime", _OPTIONAL),
    _needless("log-micros log-zero log-sendfile log-ioerror", "every request has a line"),
    _needless("log-master threaded-logger", "workers write their own lines"),
    _needless("log-master-bufsize", "workers write their own lines", _VALUE),
    _needless("memory-report", "osloxide status shows the memory of each worker", _OPTIONAL),
    _needless("ignore-sigpipe ignore-write-errors", "a client that is gone is no error"),
    _needless("disable-write-exception", "a client that is gone is no error"),
    _needless("write-errors-exception-only", "a client that is gone is no error"),
    _honoured("stats stats-server", "stats", "--stats"),
    _honoured("stats-http", "stats_http", "--stats-http", _FLAG),
    _needless("stats-minified stats-min stats-no-cores stats-no-metrics", "still the same JSON"),
    _needless("enable-metrics", "osloxide metrics"),
    _needless("py-tracebacker", "kill -WINCH shows the requests that run", _VALUE),
    _needless("show-config dump-options", "osloxide uwsgi --explain"),
    # ---- responses
    _honoured("add-header", "add_header", "--add-header; Connection: close is --no-keep-alive"),
    _honoured("rem-header del-header", "rem_header",
              "--remove-header; needless for Content-Length, a workaround for uWSGI's own"),
    _honoured("static-map", "static_map", "--static-map"),
    _needless("offload-threads offload-thread", "files are sent by the kernel", _VALUE),
    _needless("honour-range", "ranges are the application's business"),
    _needless("disable-sendfile", "files below static-map are sent by the kernel all the same"),
    _needless("ksm", "memory is shared by the fork, with --preload", _OPTIONAL),
    _needless("backlog-status", "osloxide status shows what waits"),
    # ---- the language itself
    _honoured("ini yaml yml json js xml xmlconfig", "include", "read at this place"),
    _honoured("include inherit config", "include", "read at this place; its name tells the format"),
    _honoured("set set-ph set-placeholder", "include", "sets a placeholder"),
    _honoured("declare-option", "include", "sets a placeholder"),
    _needless("print", "printed by uWSGI alone", _VALUE),
    # ---- refused
    _refused("daemonize daemonize2", "let the service manager start it in the background"),
    _refused("preload", "no option of uWSGI; give osloxide serve --preload"),
    _refused("ssl-option", "give --ssl-version to osloxide serve"),
    _refused("https2", "HTTP/2 is not spoken; let the proxy in front speak it"),
    _refused("http-to-https", "redirect in the proxy in front"),
    _refused("http-auto-gzip http-websockets", "let the proxy in front do it", _FLAG),
    _refused("limit-as limit-nproc", "set LimitAS=, LimitNPROC= in the unit"),
    _refused("reload-on-as evil-reload-on-as",
             "address space is no memory; give reload-on-rss"),
    _refused("log-slow log-big", "osloxide status shows slow requests; take it out"),
    _refused("log-syslog rsyslog-packet-size", "let journald read stdout, or give --log-config"),
    _refused("log-maxsize log-backupname", "rotate by logrotate and send SIGUSR1"),
    _refused("log-socket log-encoder log-req-encoder", "give osloxide serve --log-config"),
    _refused("async", "there are no green threads; give threads"),
    _refused("wsgi-lite web3 pump pecan", "give module or wsgi-file"),
    _refused("eval", "write the code to a file and give wsgi-file"),
    _refused("import pyimport py-import python-import shared-import",
             "import it in the application's module"),
    _refused("static-map2 check-static static-index static-expires static-safe",
             "serve files by static-map, or by the proxy in front"),
    _refused("attach-daemon smart-attach-daemon", "give the daemon a service unit of its own"),
    _refused("master-fifo", "send signals: HUP reloads, TERM stops, USR1 opens logs again"),
    _refused("chroot pivot-root", "set RootDirectory= in the service unit"),
    _refused("ping", "osloxide status --ready NAME"),
    _refused("connect-and-read", "osloxide status"),
    _refused("pause suspend resume", "send SIGSTOP or SIGCONT to the workers"),
    _refused("vhost", "start one service for each host", _FLAG),
    _refused("fastcgi-socket scgi-socket raw-socket suwsgi-socket ssl-socket puwsgi-socket",
             "speak HTTP or the uwsgi protocol: http-socket, https-socket, socket"),
    _refused("shared-socket map-socket", "start one service for each socket, or give none of it"),
    _refused("carbon", "osloxide metrics offers the figures to Prometheus"),
    _refused("udp", "give http-socket or socket"),
    _needless("catch-exceptions", "an exception is answered 500, and its traceback is logged"),
    _needless("pcre-jit", "patterns are Python's"),
    _needless("wsgi-env-behavior wsgi-env-behaviour",
              "each request has an environment of its own", _VALUE),
    _needless("wsgi-strict", "PEP 3333 always holds"),
    _needless("so-send-timeout so-write-timeout socket-send-timeout socket-write-timeout",
              "socket-timeout holds for answers as well", _VALUE),
    _needless("write-errors-tolerance", "a client that is gone is no error", _VALUE),
    _needless("cheaper-busyness-max cheaper-busyness-min cheaper-busyness-multiplier "
              "cheaper-busyness-penalty cheaper-busyness-backlog-alert "
              "cheaper-busyness-backlog-multiplier cheaper-busyness-backlog-step "
              "cheaper-busyness-backlog-nonzero cheaper-rss-limit-soft cheaper-rss-limit-hard "
              "cheaper-algo2", "all workers run from the start", _VALUE),
    _needless("cheaper-busyness-verbose", "all workers run from the start"),
    _needless("forkbomb-delay", "a worker that keeps dying is forked with back-off", _VALUE),
    _needless("max-apps", "one application is served", _VALUE),
    _needless("mem-collector-freq backtrace-depth", "there is no such part", _VALUE),
    _needless("use-abort", "a crash keeps its signal", _FLAG),
    _needless("py-auto-reload-ignore", "py-autoreload is for development", _VALUE),
    _needless("py-executable py-sys-executable py-program-name py-programname",
              "sys.executable is this interpreter's", _VALUE),
    _needless("file-serve-mode fileserve-mode", "files are sent by the kernel", _VALUE),
    _needless("fastcgi-modifier1 fastcgi-modifier2 raw-modifier1 raw-modifier2 scgi-modifier1 "
              "scgi-modifier2 http-modifier2 http-socket-modifier2 https-socket-modifier1 "
              "https-socket-modifier2 allowed-modifiers remap-modifier",
              "there are no modifiers", _VALUE),
    _needless("http-quiet http-manage-rtsp http-use-base", "there is no router process"),
    _needless("http-events", "there is no router process", _VALUE),
    _needless("honour-stdin daemons-honour-stdin", "standard input is left alone"),
    _needless("body-read-warning", "bodies stream", _VALUE),
    _refused("wsgi-accept-buffer wsgi-accept-buffers",
             "let the application return bytes", _FLAG),
    _refused("wsgi-disable-file-wrapper", "files are sent by the kernel; take it out", _FLAG),
    _refused("attach-control-daemon attach-daemon2 smart-attach-daemon2",
             "give the daemon a service unit of its own"),
    _refused("idle", "let systemd start it by its socket", _VALUE),
    _refused("die-on-idle cheap http-cheap", "let systemd start it by its socket", _FLAG),
    _refused("worker-exec worker-exec2 python-worker-override",
             "start that program by a service unit of its own"),
    _refused("worker-mount check-mount check-mountpoint mountpoint-check",
             "use BindPaths= or RequiresMountsFor= of the service unit"),
    _refused("chdir2 force-cwd", "give chdir"),
    _refused("add-gid", "set SupplementaryGroups= in the service unit"),
    _refused("immediate-uid immediate-gid", "set User= and Group= in the service unit"),
    _refused("master-as-root", "the parent takes uid and gid too; take it out", _FLAG),
    _refused("envdir early-envdir", "set EnvironmentFile= in the service unit, or give env"),
    _refused("fs-reload fs-brutal-reload fs-signal reload-on-fd brutal-reload-on-fd",
             "give touch-reload, or send HUP"),
    _refused("reload-on-exception", "exceptions are answered 500 and logged; take it out", _FLAG),
    _refused("reload-on-exception-type reload-on-exception-value reload-on-exception-repr",
             "exceptions are answered 500 and logged; take it out"),
    _refused("exception-handler", "exceptions are logged; give osloxide serve --log-config"),
    _refused("backlog-alarm listen-queue-alarm lq-alarm segfault-alarm",
             "alarms belong to Prometheus: osloxide metrics"),
    _refused("http-to http-fallback http-use-socket http-use-pattern http-use-code-string "
             "http-use-cache http-zerg http-resubscribe http-stud-prefix http-var http-harakiri "
             "http-gracetime http-uid http-gid http-ss http-stats http-stats-server",
             "use a proxy: nginx, haproxy or Apache", _OPTIONAL),
    _refused("http-backend-http force-gateway", "use a proxy: nginx, haproxy or Apache", _FLAG),
    _refused("httprouter", "give http"),
    _refused("https-export-cert", "give --ca-certs to osloxide serve", _FLAG),
    _refused("https-session-context", "TLS tickets resume; take it out"),
    _refused("sni sni-dir sni-dir-ciphers sni-regexp",
             "one certificate is served; let the proxy in front choose"),
    _refused("error-page-403 error-page-404 error-page-500 upload-progress",
             "let the proxy in front do it"),
    _refused("collect-header response-header-collect pull-header response-headers-limit",
             "do it in the application or in the proxy in front"),
    _refused("mimefile mime-file", "serve files by the proxy in front"),
    _refused("freebind", "set FreeBind= in the socket unit", _FLAG),
    _refused("socket-sndbuf socket-rcvbuf", "set SendBuffer=, ReceiveBuffer= in the socket unit"),
    _refused("tcp-fast-open tcp-fastopen tcp-fast-open-client tcp-fastopen-client",
             "let the proxy in front do it"),
    _refused("undeferred-shared-socket", "start one service for each socket, or give none of it"),
    _refused("queue queue-blocksize queue-store queue-store-sync sharedarea py-sharedarea locks "
             "lock-engine ftok persistent-ipcsem flock flock2 flock-wait flock-wait2 rpc-max "
             "add-cache-item check-cache load-file-in-cache load-file-in-cache-gzip",
             "the module uwsgi offers none of it; use oslo.cache, tooz or a database", _OPTIONAL),
    _refused("py python pyrun pyshell pyshell-oneshot python-raw symcall symcall-post-fork "
             "symcall-register-rpc symcall-use-next dlopen shared-py-import shared-pyimport "
             "shared-python-import pymodule-alias post-pymodule-alias config-py",
             "do it in the application's module", _OPTIONAL),
    _refused("no-site", "give virtualenv", _FLAG),
    _refused("python-version", "osloxide runs on the Python that it is installed in", _FLAG),
    _refused("loop", "requests run on native threads; give threads"),
    _refused("prio", "set Nice= in the service unit"),
    _refused("never-swap", "set MemorySwapMax=0 in the service unit", _FLAG),
    _refused("clock timer rbtimer", "use a timer unit", _OPTIONAL),
    _refused("wait-interface wait-iface wait-interface-timeout wait-iface-timeout",
             "order the units: After=network-online.target"),
    _refused("ns ns-net jailed pivot", "set PrivateNetwork= and the like in the service unit",
             _OPTIONAL),
    _refused("vhost-host", "start one service for each host", _FLAG),
    _refused("refork re-fork refork-as-root re-fork-as-root refork-post-jail re-fork-post-jail "
             "early-emperor", "let the service manager start it", _OPTIONAL),
    _refused("drop-after-init drop-after-apps ignore-script-name", "take it out", _FLAG),
    _refused("fallback-config propagate-touch heartbeat weight auto-weight start-unsubscribed "
             "unsubscribe-on-graceful-reload unique-legion-cron shutdown-sockets resolve "
             "multicast multicast-ttl multicast-loop",
             "start one osloxide uwsgi for each ini file, by a template unit", _OPTIONAL),
    _refused("profiler", "kill -WINCH shows the requests that run; use py-spy"),
    _refused("blacklist end-blacklist whitelist end-whitelist declare-option2 inject-before "
             "inject-after command-mode binary-path binary-append-data privileged-binary-patch "
             "privileged-binary-patch-arg unprivileged-binary-patch unprivileged-binary-patch-arg "
             "file-write fd-safe safe-fd exit iprint after-request-hook after-request-call "
             "no-harakiri-after-req-hook no-harakiri-arh notify-socket ping-timeout no-server "
             "cgi-mode test extract mode get no-fd-passing rsyslog-split-messages skip-zero "
             "fastcgi-nph-socket scgi-nph-socket check-static-docroot print-sym print-symbol "
             "build-plugin cflags dot-h binsh check-interval logger-list loggers-list logger-req "
             "loop-list loops-list clock-list clocks-list plugin-list plugins-list",
             "there is no such part; take it out", _OPTIONAL),
)  # fmt: skip

FAMILIES: tuple[tuple[str, str], ...] = (
    ("emperor", "start one osloxide uwsgi for each ini file, by a template unit"),
    ("vassal", "start one osloxide uwsgi for each ini file, by a template unit"),
    ("imperial", "start one osloxide uwsgi for each ini file, by a template unit"),
    ("spooler", "give the jobs a service of their own"),
    ("mule", "give the jobs a service of their own"),
    ("farm", "give the jobs a service of their own"),
    ("cron", "use a timer unit"),
    ("unique-cron", "use a timer unit"),
    ("legion", "elect a leader by tooz or by the database"),
    ("cache", "use oslo.cache"),
    ("alarm", "alarms belong to Prometheus: osloxide metrics"),
    ("metric", "osloxide metrics offers the figures to Prometheus"),
    ("carbon", "osloxide metrics offers the figures to Prometheus"),
    ("stats-push", "osloxide metrics offers the figures to Prometheus"),
    ("dogstatsd", "osloxide metrics offers the figures to Prometheus"),
    ("statsd", "osloxide metrics offers the figures to Prometheus"),
    ("snmp", "osloxide metrics offers the figures to Prometheus"),
    ("zerg", "SIGHUP replaces the workers without a gap"),
    ("gevent", "requests run on native threads; give threads"),
    ("ugreen", "requests run on native threads; give threads"),
    ("fastrouter", "use a proxy: nginx, haproxy or Apache"),
    ("rawrouter", "use a proxy: nginx, haproxy or Apache"),
    ("sslrouter", "use a proxy: nginx, haproxy or Apache"),
    ("subscri", "use a proxy: nginx, haproxy or Apache"),
    ("http-subscri", "use a proxy: nginx, haproxy or Apache"),
    ("hook-", "use ExecStartPre=, ExecStartPost= or ExecStopPost= of the service unit"),
    ("exec-", "use ExecStartPre=, ExecStartPost= or ExecStopPost= of the service unit"),
    ("call-", "call it in the application's module"),
    ("mount-", "use BindPaths= or a mount unit"),
    ("umount-", "use BindPaths= or a mount unit"),
    ("cgroup", "set resource limits in the service unit"),
    ("namespace", "set PrivateNetwork= and the like in the service unit"),
    ("unshare", "set PrivateNetwork= and the like in the service unit"),
    ("setns", "set JoinsNamespaceOf= in the service unit"),
    ("route", "route in the proxy in front or in a paste composite"),
    ("static-", "serve files by static-map, or by the proxy in front"),
    ("wait-for", "order the units: After=, Requires="),
    ("websocket", "WebSocket is not spoken; give the console proxies their own servers"),
    ("touch-", "send the signal: HUP reloads, USR1 opens logs again"),
    ("log-", "give osloxide serve --log-config"),
    ("ssl-", "see --ciphers, --ssl-version and --ca-certs of osloxide serve"),
    ("harakiri", "harakiri alone sets the time"),
    ("cheaper", "all workers run from the start; take it out"),
    ("signal", "use a thread of the application"),
    ("rrdtool", "osloxide metrics offers the figures to Prometheus"),
    ("nagios", "osloxide status --ready NAME"),
)
"""Beginnings of further names that uWSGI knows and osloxide refuses, with the remedy."""

BY_NAME = {name: option for option in TABLE for name in option.names}


NAMES = frozenset([*BY_NAME, *(beginning for beginning, _ in FAMILIES)])
"""Names that are an option's for certain, where others only begin as those of a family do."""


def find(name: str) -> Option | None:
    """The option of this name; one of a refused family included."""
    if (found := BY_NAME.get(name)) is not None:
        return found
    for beginning, remedy in FAMILIES:
        if name.startswith(beginning):
            return Option((name,), Kind.OPTIONAL, Verdict.REFUSED, remedy)
    return None
