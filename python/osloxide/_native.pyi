from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address
from os import PathLike
from typing import Any, Literal, final

__all__ = [
    "AccessFilter",
    "AccessLog",
    "AmqpClient",
    "AmqpConnection",
    "AmqpDelivery",
    "AmqpOutbox",
    "AmqpQueue",
    "AmqpRequest",
    "AmqpSubscriber",
    "AmqpSubscription",
    "Executor",
    "FileWrapper",
    "Heartbeats",
    "Scoreboard",
    "Server",
    "Supervisor",
    "TlsConfig",
    "__version__",
    "adopt_descendants",
    "amqp_ack",
    "amqp_confirms",
    "amqp_deliveries",
    "amqp_publish",
    "amqp_remedy",
    "arm_deadline",
    "beat",
    "bound_unheard",
    "check_log_format",
    "disarm_deadline",
    "end_init_at_sigterm",
    "enter_template",
    "enter_worker",
    "forget_thread_data",
    "guard_heard",
    "guard_signals",
    "install_wakeup",
    "interrupt_thread",
    "learn_lock_waiters",
    "limit_worker",
    "native_threads",
    "nudge_main_thread",
    "parent_died",
    "park",
    "read_file",
    "relay_signals",
    "requests_in_flight",
    "reread_log_levels",
    "signals_heard",
    "stop_relaying",
    "thread_state",
    "thread_waits",
    "uninstall_wakeup",
    "unknown_thread_data",
    "waits_for_interpreter",
    "wake",
    "when_job_ends",
    "worker_leaving",
    "worker_ready",
    "worker_reconfigured",
]

__version__: str

# ---- signals (src/python/signals.rs) ----------------------------------------------------------

def install_wakeup() -> None:
    """Own ``signal.set_wakeup_fd`` from now on (main thread). Idempotent. Bytes are forwarded to
    an earlier owner's fd, which uninstall_wakeup() restores. After a fork the child must call it
    again: it makes a fresh pipe."""

def uninstall_wakeup() -> None: ...
def park(timeout: float | None = None) -> bool:
    """Park the main thread, interpreter released, until wake() is called or *timeout* seconds
    passed. Python signal handlers run promptly during it; an exception they raise propagates.
    True when woken by wake()."""

def nudge_main_thread(is_nudged: bool) -> None:
    """Whether a thread of this process interrupts the system calls of the main thread, by a signal
    that has a handler, until the handlers of each signal have run. park() then needs no wakeup fd."""

def wake() -> None:
    """Make a parked main thread return from park() (any thread, also from a signal handler).
    Sticky: a park() entered afterwards returns at once."""

# ---- scoreboard (src/python/scoreboard.rs) -----------------------------------------------------

@final
class Scoreboard:
    """Counters in a memfd named ``osloxide-scoreboard``, shared with every process forked later."""
    def __new__(cls, name: str = "") -> Scoreboard: ...
    @staticmethod
    def attach(pid: int) -> Scoreboard:
        """Read-only view of the scoreboard of another process, found through /proc/PID/fd.
        Raises ProcessLookupError when that process has none."""
    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int:
        """The process that made it."""
    @property
    def started_at(self) -> float | None:
        """``CLOCK_MONOTONIC`` seconds when it was made."""
    def claim(self, slot: int, generation: int) -> None:
        """In a worker: this process now counts in *slot* (server and pool find it by themselves)."""
    def fileno(self) -> int:
        """The descriptor of the memory, by which others find it in ``/proc/PID/fd``."""
    def name_group(self, group: int, name: str) -> None:
        """What status and top call *group*; cut at 64 bytes. add_group() does it by itself."""
    def read(self) -> list[dict[str, Any]]:
        """One dict for each slot in use: slot, group, group_name, pid, generation, state (str), started_at and
        ready_at (CLOCK_MONOTONIC seconds), connections, in_flight, served (since the fork), slot_served
        (by all workers that the slot ever had: never goes down), oldest_since (monotonic seconds of the
        oldest request in flight, or None), threads, respawns, last_exit (wait status or None)."""

# ---- supervisor (src/python/supervisor.rs) -----------------------------------------------------

_Command = (
    tuple[Literal["fork"], int, int, int]
    | tuple[Literal["reload"]]
    | tuple[Literal["mutate"]]
    | tuple[Literal["stopping"], int]
    | tuple[Literal["exited"], int, int, int, int, float]
    | tuple[Literal["orphan"], int]
    | tuple[Literal["backoff"], int, int, float, int]
    | tuple[Literal["late"], int, int, float]
    | tuple[Literal["hung"], int, int, float]
    | tuple[Literal["worn"], int, int, int, str, int]
    | tuple[Literal["leaves_first"], int, int, int, float | None]
    | tuple[Literal["all_ready"]]
    | tuple[Literal["reloaded"]]
    | tuple[Literal["template"]]
    | tuple[Literal["tick"]]
    | tuple[Literal["interrupted"]]
)

@final
class Supervisor:
    """The parent's state machine. request() may be called from anywhere in the main thread,
    signal handlers included; everything else only from the main thread, outside handlers."""
    def __new__(cls, scoreboard: Scoreboard) -> Supervisor: ...
    def add_group(self, name: str, workers: int) -> int:
        """A group of *workers* identical workers (one oslo service). Returns its number. 0 workers allowed."""
    def resize(self, group: int, workers: int) -> None:
        """Give *group* so many workers: more are forked, or those in its highest slots drain and leave.
        Nothing happens while stopping."""
    def set_graceful_timeout(self, seconds: float) -> None:
        """How long workers may drain after stop/TERM before SIGABRT and SIGKILL; 0 = for ever."""
    def set_worker_timeout(self, seconds: float) -> None:
        """Replace a worker that is stopped (SIGSTOP), busy with one request, or has not kept the promise
        of its last beat(), for longer than this; 0 = never, the default. The parent looks at its
        workers four times in that span."""
    def set_tick(self, seconds: float) -> None:
        """Have next() return ``("tick",)`` this often; 0 = never, the default."""
    def adopt_orphans(self) -> None:
        """Find children that ended and are no workers, as process 1 does: ``("orphan", pid)``."""
    def hold_forks(self, held: bool) -> None:
        """While held, workers that are due are not forked; all else goes on."""
    def watch_templates(self, fds: list[int]) -> None:
        """Have next() return ``("template",)`` for as long as one of *fds* is readable, instead of
        those of the last call. The descriptors are copied.

        :raises OSError: no descriptors are left, or one of them is closed."""
    def replace_workers(self) -> None:
        """Begin a round of replacements, as after ``("reload",)`` and configured(). Does nothing while
        stopping."""
    def reap_orphan(self, pid: int) -> int | None:
        """Reap a child that ``("orphan", pid)`` told of: its wait status, or None when somebody else
        has waited for it."""
    def request(self, kind: str) -> None:
        """Record ``"stop"``, ``"reload"``, ``"mutate"`` or ``"abort"``; next() acts on the most urgent."""
    def due(self) -> _Command | None:
        """Like next(), but never parks: None when nothing is due now. launch_service() of the
        EVENTLET flavour uses it to fork at once."""
    def next(self) -> _Command | None:
        """Park until something is due for Python and return it; None once everything has ended
        (nothing is left to supervise and a stop was requested). Commands:

        ``("fork", group, slot, generation)``  call os.fork(); parent answers forked() or fork_failed()
        ``("reload",)`` / ``("mutate",)``       reload or mutate the configuration now; then call configured()
        ``("stopping", count)``                 shutdown begins, *count* workers have been sent SIGTERM
        ``("exited", pid, group, slot, status, lifetime)``  a worker ended (*status* as from os.waitpid,
                                                *lifetime* in seconds)
        ``("orphan", pid)``                   as PID 1, or after adopt_orphans(): a child that is no worker has ended, and
                                                nobody has waited for it for 2 s; reap_orphan() reaps it.
                                                Without that it is reported again a minute later
        ``("backoff", group, slot, seconds, failures)``  a slot that keeps dying waits before its next fork
        ``("late", slot, pid, waited)``         the deadline passed; SIGABRT was sent, SIGKILL follows
        ``("hung", slot, pid, seconds)``        the worker timeout passed; SIGABRT was sent, SIGKILL follows 2 s
                                                later, then a respawn
        ``("worn", group, slot, pid, why, number)``  a worker has asked to be replaced, see
                                                limit_worker(); its successor takes over first. *why* is
                                                requests, lifetime (seconds), memory (bytes) or stuck
                                                (threads), and *number* how many
        ``("leaves_first", group, slot, pid, waited)``  a worker is told to leave before its successor serves:
                                                that has been starting for *waited* seconds, or, where that
                                                is None, has failed again
        ``("all_ready",)``                      every slot has a ready worker, for the first time since
                                                the last add_group()
        ``("reloaded",)``                       every worker is of the new generation and ready, or has
                                                mutated its configuration (worker_reconfigured())
        ``("template",)``                       a descriptor of watch_templates() is readable
        ``("tick",)``                           the interval of set_tick() has passed
        ``("interrupted",)``                    a signal handler ran that requested nothing
        """
    def forked(self, slot: int, pid: int) -> None: ...
    def fork_failed(self, slot: int, errno: int) -> None:
        """EAGAIN and ENOMEM are retried with back-off; serving goes on during that."""
    def configured(self) -> None:
        """The configuration was reloaded: workers now get SIGHUP (mutate) or are replaced one by one
        (reload). Calling next() without it drops the request: the configuration was unusable."""
    def pids(self) -> list[int]:
        """Live workers."""
    def exit_status(self) -> int:
        """0 when every worker left in time, 1 when one had to be killed at the deadline."""
    def liveness_fd(self) -> int:
        """Read end of the liveness pipe: end-of-file means that the parent is gone."""
    def notice_fd(self) -> int:
        """Write end on which a worker reports that it is ready (see enter_worker())."""
    def kill_all(self, signal: int) -> None:
        """Send *signal* to every live worker now (abort)."""

# ---- worker (src/python/worker.rs) ---------------------------------------------------------------

def enter_worker(
    supervisor: Supervisor, scoreboard: Scoreboard, slot: int, generation: int
) -> None:
    """First call in a forked child: closes the parent's ends of the pipes, claims the slot, makes a
    fresh wakeup pipe and starts the watch thread, which on the parent's death sets parent_died(),
    sends SIGTERM to this process and ends it hard after 2.5 s."""

def enter_template(supervisor: Supervisor) -> None:
    """First call in a forked template of workers: closes the parent's ends of the pipes, and has the
    kernel end this process when its parent ends.

    :raises RuntimeError: the parent is gone already."""

def adopt_descendants(wanted: bool) -> None:
    """Whether processes below this one that lose their parent become this one's children
    (PR_SET_CHILD_SUBREAPER). Not inherited by a fork."""

def worker_ready() -> None:
    """start() has returned: tell the parent. Does nothing outside a worker."""

def worker_reconfigured() -> None:
    """The configuration was mutated, as SIGHUP asked: tell the parent. Does nothing outside a worker,
    and before worker_ready()."""

def limit_worker(
    *,
    requests: int | None = None,
    lifetime: float | None = None,
    memory: int | None = None,
    memory_kind: str = "rss",
    stuck: int | None = None,
) -> None:
    """After what this worker asks its parent for a successor, once: requests, seconds from now on,
    bytes of memory (rss, pss or uss, looked at behind a request), threads in requests that were
    given up; None = as before, never at first. It serves on until the parent sends SIGTERM."""

def worker_leaving() -> None:
    """This process is on its way out: shown as draining from now on."""

def beat(seconds: float) -> None:
    """The interpreter runs, and this is called again within *seconds*; 0 promises nothing. A worker that
    breaks its promise hangs, see Supervisor.set_worker_timeout()."""

def parent_died() -> bool: ...
def native_threads() -> list[str]:
    """Names of the threads that the native core has in this process, cut to 15 bytes by the kernel;
    those of a process that this one was forked from do not count. Takes no lock."""

def arm_deadline(seconds: float, status: int = 1) -> None:
    """End this process with *status* after *seconds* (0: at once), whatever the interpreter is
    doing, unless it left before. Of several deadlines the nearest holds, with the status of the last
    call. Starts the watch thread if need be (then this process must not fork workers any more)."""

def relay_signals(to: int, patience: float) -> int:
    """Have the watch thread pass on what ``signal.set_wakeup_fd()`` is given; starts it if need be.

    :param to: a non-blocking descriptor that gets the numbers. A copy of it is kept open until the
        watch thread ends.
    :param patience: seconds after SIGTERM, SIGINT or SIGALRM within which signals_heard() must be
        called; otherwise the process ends with status 1. 0 is for ever.
    :returns: the descriptor for ``signal.set_wakeup_fd()``, valid until stop_relaying()."""

def bound_unheard(patience: float) -> None:
    """Another *patience* for relay_signals(). Does nothing where no watch thread runs."""

def signals_heard() -> None:
    """The handlers of all signals that arrived have run."""

def stop_relaying() -> None:
    """End relay_signals(). Call ``signal.set_wakeup_fd()`` with another descriptor before."""

def guard_signals(patience: float) -> None:
    """Have the kernel end this process with status 1 when guard_heard() is not called within
    *patience* seconds after SIGTERM, SIGINT or SIGALRM; 0 is for ever. Needs no thread. Holds for
    those of these signals that have a handler, until another one is installed."""

def guard_heard() -> None:
    """The handlers of all signals that arrived have run."""

def end_init_at_sigterm() -> None:
    """Have SIGTERM end process 1 with status 143, whatever its interpreter does, until another
    handler is installed; ``signal.getsignal()`` does not show it. Does nothing in another process,
    and where the signal has a handler or is ignored. A child obeys the signal as by default."""

def disarm_deadline() -> None:
    """Take the armed deadline back: the shutdown is complete and this process goes on. Outside a
    worker the watch thread has ended on return, unless it relays signals, so that this process may
    fork again."""

# ---- WSGI server (src/python/server.rs, src/python/wsgi) ---------------------------------------

@final
class Server:
    """Accepts on one listening socket and calls a WSGI application on pool threads."""
    def __new__(
        cls,
        app: Callable[..., Any] | None,
        fd: int,
        *,
        pool_size: int = 100,
        keep_alive: bool = True,
        client_socket_timeout: float | None = ...,  # 900.0
        max_header_line: int = 16384,
        max_url_len: int = 8192,
        max_headers: int = 100,
        log: Callable[[str], None] | None = None,
        log_format: str = "",
        log_enabled: Callable[[], bool] | None = None,
        log_error: Callable[..., Any] | None = None,
        debug: bool = False,
        multiprocess: bool = False,
        tls: TlsConfig | None = None,
        environ: dict[str, Any] | None = None,
        lenient: bool = False,
        name: str = "server",
        keep_alive_timeout: float | None = None,
        max_connections: int | None = None,
        max_body: int | None = None,
        proxies: Sequence[tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]]
        | None = None,
        access_log: AccessLog | None = None,
        access_filter: AccessFilter | None = None,
        request_timeout: float | None = None,
        protocol: str = "http",
        max_waiting: int | None = None,
        slow_client_share: int = 50,
        max_unsent: int = 134_217_728,
    ) -> Server:
        """*protocol* is ``"http"``, or ``"uwsgi"`` for proxies that speak that; it has CGI variables for the environ. *fd* is duplicated. Everything is checked now; ValueError names the option. *environ* holds extra keys for every request. *log* receives finished
        access-log lines; without it, or with an empty *log_format*, nothing is logged.
        *log_error* is called as ``logger.error(message, exc_info=exception or None)``; without it
        failures go to the logger ``osloxide.wsgi``. *debug* sends tracebacks to clients. *lenient* forgives what oslo.service's own tests send (no Host header, str
        body items, a dict of headers); never set it in production. *keep_alive_timeout*: seconds that a connection may be idle
        between two requests; None for *client_socket_timeout*. *max_connections*: most connections of
        all servers of the process, the longest idle one is closed for a new one; None derives it from
        RLIMIT_NOFILE at the start. *max_body*: bytes of a request's body, beyond which it is answered
        with 413; None for no limit. *proxies*: first and last address of each range from which
        connections may come, which then begin with a header of the PROXY protocol; None for no header. *access_log* is written natively, besides *log*;
        *access_filter* holds for both. *request_timeout*: seconds for which *app* may be busy with one request, waits
        for the client left out; then the client is answered 504, or cut off where an answer had begun,
        the thread is told of by *log_error*, gets osloxide.exceptions.RequestTimeout, and counts
        neither for *pool_size* nor for the drain until it comes back; None = for ever. *max_waiting*:
        requests that may wait while *pool_size* are answered, beyond which they are answered with
        503; 0: none waits; None: any number. *slow_client_share*: percent of *pool_size* that clients which
        take or send slowly may hold while requests wait for a thread, 1 to 100. *max_unsent*: most
        bytes of memory of complete answers that clients have not taken; beyond it threads wait, or the
        slowest clients are cut off where threads are needed."""
    def start(self) -> None:
        """Start accepting. Threads live from here on: this process must not fork any more."""
    def stop(self, close: bool) -> None:
        """Stop accepting and drain: requests in flight are answered, idle connections closed.
        With *close*, the server's copy of the listening socket is closed too, after the
        connections that the kernel had already queued were accepted."""
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until drained, interpreter released, Python signal handlers running; False on timeout.
        True at once where this process has not started it, as in a child that inherits it."""
    def replace_tls(self, tls: TlsConfig) -> None:
        """Encrypt connections that are accepted from now on by *tls*; open ones go on. Without effect
        before :meth:`start`."""
    def resize(self, pool_size: int) -> None: ...
    def stats(self) -> dict[str, int]:
        """threads, busy, queued, connections, idle, in_flight, served, limit (what the gate admits
        at once just now, at most pool_size), takeovers (from threads inside the application), unsent
        (bytes of memory of whole answers that clients have not taken yet)."""

def requests_in_flight() -> list[tuple[int, float]]:
    """``threading.get_ident()`` of each pool thread inside a WSGI request, of all servers of this
    process, and the seconds since that request began (to a few milliseconds)."""

def check_log_format(format: str) -> None:
    """Raises ValueError when *format* cannot serve as ``wsgi_log_format``."""

@final
class AccessLog:
    """An access log that is written without the interpreter. Lines are put off while the server has
    other requests to see to, for 5 milliseconds at most, and are then one write(2)."""
    def __new__(cls, path: str, format: str = "combined") -> AccessLog:
        """Opens *path* for appending, ``-`` is standard output. *format* is ``combined``, ``common``
        or a % format with the keys of ``wsgi_log_format`` and those that docs/server.md lists besides.
        Raises ValueError for the format, OSError for the file."""
    def flush(self) -> None:
        """Write the lines that were put off."""
    def reopen(self) -> None:
        """Open the file again by its name, as after a rotation. Raises OSError; the old file is kept
        then."""

@final
class AccessFilter:
    """Which requests have no line in any access log."""
    def __new__(
        cls,
        silent: Sequence[tuple[str, str]] = ...,  # none
        classes: Sequence[int] = ...,  # all
    ) -> AccessFilter:
        """*silent*: fields (user-agent, client, host, path, uri) and the patterns that silence a
        request when they match anywhere in the field. *classes*: those of the statuses that have
        lines, 4 for 400 to 499. Raises ValueError that names what is wrong."""

@final
class FileWrapper:
    """``wsgi.file_wrapper``: reads *filelike* in blocks, closes it with the answer."""
    def __new__(cls, filelike: Any, block_size: int = 65536, /) -> FileWrapper: ...
    def __iter__(self) -> FileWrapper: ...
    def __next__(self) -> bytes: ...
    def close(self) -> None: ...

def reread_log_levels() -> None:
    """Forget which levels the loggers of the native modules take: they are remembered from the first
    message on, and a reload may have changed them."""

@final
class TlsConfig:
    def __new__(
        cls,
        cert_file: str,
        key_file: str,
        ca_file: str | None = None,
        version: str | None = None,
        ciphers: str | None = None,
        *,
        passphrase_file: str | None = None,
        client_certificates: str = "required",
        quiet: bool = False,
    ) -> TlsConfig:
        """Reads and checks everything now. *passphrase_file* holds the passphrase of an encrypted
        key in its first line. *client_certificates* is ``"required"`` or ``"optional"`` and without
        effect unless *ca_file* is given. *quiet*: no warning of what does not keep it from serving.
        Raises ValueError or OSError naming the option, the value and the remedy."""

def amqp_remedy(code: int, text: str) -> str | None:
    """What an operator can do where a broker refuses a declaration with this reply code and text; None
    where that is not known."""

# ---- files (src/python/files.rs) -----------------------------------------------------------------

def read_file(path: str | PathLike[str]) -> bytes:
    """The bytes of a file. A pipe may be one too: its writer has 10 s in all.

    :raises TimeoutError: it has not ended by then.
    :raises OSError: it cannot be read, or is longer than 16 MiB.
    """

# ---- AMQP frames (src/python/frames.rs) ----------------------------------------------------------

def amqp_deliveries(
    buffer: bytes, channel: int
) -> tuple[list[tuple[int, bool, str]], int, int, bool]:
    """The messages at the beginning of *buffer*: (delivery tag, redelivered, body) of each; the
    bytes and the frames that they and heartbeats took; whether something for py-amqp follows.
    Otherwise what is left is incomplete."""

def amqp_confirms(buffer: bytes, channel: int) -> tuple[list[tuple[int, bool]], int, int, bool]:
    """The same for ``basic.ack`` of a broker: (delivery tag, multiple) of each."""

def amqp_ack(channel: int, tag: int) -> bytes:
    """The frame that acknowledges one delivery."""

def amqp_publish(
    channel: int, queue: str, message_id: str, mandatory: bool, body: str, frame_max: int
) -> bytes:
    """The frames, of at most *frame_max* bytes each (0: no limit), that publish *body*, which is
    JSON, to *queue* through the default exchange.

    :raises ValueError: *queue* or *message_id* is longer than 255 bytes.
    """

# ---- Interruption (src/python/interrupt.rs) -------------------------------------------------------

def interrupt_thread(
    ident: int,
    native_id: int,
    seen: str,
    exception: type[BaseException],
    innermost: str,
    anywhere: list[str],
) -> bool | None:
    """Make the thread *ident* raise *exception*, a class, before it executes anything further; when
    it is inside foreign C code, once that returns. The look and the arming are one step.

    :param seen: what :func:`thread_state` said of *native_id*, the same thread, some switch
        intervals ago (``sys.getswitchinterval``).
    :returns: False, and nothing is armed, while its innermost frame belongs to the package
        *innermost*, or one of its frames to a module of *anywhere*; from CPython 3.13 on unless it
        waits inside a function in C; and always in an interpreter without a lock (PEP 703), where a
        look tells nothing. None when there is no such thread, or *native_id* has ended: the ident of
        a thread that has ended is given to a new one.
    """

def thread_state(native_id: int) -> str:
    """Letter, count of voluntary switches and of others of a thread of this process; empty when it
    has ended. Two equal answers mean that it has not run in between.
    """

def thread_waits(native_id: int, seen: str) -> bool:
    """Whether a thread of this process waits for something else than the interpreter, which the
    caller holds, or has ended. A thread that waits for the interpreter is inside futex(2), and wakes
    up at every switch interval (``sys.getswitchinterval``). So one inside another system call waits
    elsewhere, and so does one that has slept on since it was *seen*, but for one that
    :func:`waits_for_interpreter`.

    :param seen: what :func:`thread_state` said of it some switch intervals ago; empty for nothing.
    """

# ---- waiters for the interpreter (src/python/lock_waiters.rs) ------------------------------------

def learn_lock_waiters() -> bool:
    """Learn at which futex threads wait for the interpreter, from two threads of its own that end
    before this returns. At most 50 ms with the interpreter held; nothing once it is known.

    :returns: False where it is not known: an interpreter without a lock (PEP 703), a C library that
        keeps no such place (musl), a kernel that hides system calls, or two threads that the machine
        kept from running. It is tried ten times in a process, forks included.
    """

def waits_for_interpreter(native_id: int) -> bool:
    """Whether a thread of this process sleeps at the interpreter's lock; False as well where
    :func:`learn_lock_waiters` has not returned True.
    """

# ---- data of threads (src/python/thread_data.rs) ----------------------------------------------------------

def forget_thread_data() -> bool:
    """Let the calling thread go on without ``threading.local`` data, as a new one would begin. What
    the data refers to is released here, so destructors may run.

    :returns: False where this CPython keeps them in an unknown place; the thread has to end then.
    """

def unknown_thread_data() -> list[str]:
    """What of a thread is in a place of this CPython that was not found, by the names of its API; empty
    where all was. A forked child drops that of its parent's other threads.
    """

# ---- the end of a job (src/python/job_end.rs) -------------------------------------------------------------

def when_job_ends(function: Callable[[], object]) -> None:
    """Have *function* called on a pool thread of a server or an executor whenever a request or a job has
    ended there; what it raises is reported as unraisable. The first one that is given stays.
    """

# ---- RPC executor (src/python/executor.rs) ---------------------------------------------------------------

@final
class Heartbeats:
    """A native thread that sends AMQP heartbeats on the connections added, while there are any."""
    def __new__(cls) -> Heartbeats: ...
    def add(self, fd: int, interval: float) -> AmqpConnection:
        """Take over the writing side of a connected socket, of which the peer expects something
        every *interval* seconds. The descriptor is duplicated.

        :raises ValueError: *fd* is negative or *interval* not above 0.
        :raises OSError: no such socket, no descriptor or no thread to be had.
        """
    def add_tls(
        self,
        fd: int,
        *,
        roots: bytes | None = None,
        server_name: str | None = None,
        identity: tuple[bytes, bytes] | None = None,
        timeout: float | None = None,
    ) -> AmqpConnection:
        """Shake hands as a TLS client on a connected socket, and take over both its sides. The
        descriptor is duplicated; heartbeats begin with :meth:`AmqpConnection.beat`.

        :param roots: authorities in PEM that are trusted; None accepts every certificate.
        :param server_name: which the certificate must be for, sent by SNI; None: any.
        :param identity: certificate and key in PEM, for brokers that ask for them.
        :param timeout: seconds that the handshake may take; None: for ever.
        :raises ValueError: an argument is not PEM, or one side refuses the other.
        :raises TimeoutError: the handshake has taken too long.
        :raises OSError: the connection is lost, or no descriptor or thread is to be had.
        """

@final
class AmqpClient:
    """RPC requests and notifications to RabbitMQ: one connection for all threads of this process, made by the first
    request. Not to be used in a process that was forked from its maker's.

    *hosts* are name, port, user and password each, tried in this order; *mechanism* is AMQPLAIN, PLAIN
    or EXTERNAL. *heartbeat* in seconds, 0 = none. *pauses* in seconds: between the first two rounds over all
    hosts, how much longer each further one is, the longest, what is added to each, and up to how
    much is added by chance. *decode* is called for replies that are not plain JSON, in a thread of
    its own, with content type, content encoding, compression and body; it returns the call's id
    and the body as plain JSON, or None. *tls* is None for TCP, else files of trusted authorities
    (None: every certificate is taken), whether the certificate must be for the host's name, and
    files of certificate and key (None: none). Arguments of queues are bool, int or str.

    :raises ValueError: an unknown mechanism, or a pause below 0.
    :raises OSError: no host, or a name that AMQP has no room for.
    """
    def __new__(
        cls,
        hosts: Sequence[tuple[str, int, str, str]],
        virtual_host: str,
        mechanism: str,
        heartbeat: int,
        connection_name: str,
        reply_queue: str,
        pauses: tuple[float, float, float, float, float],
        decode: Callable[[str, str, str | None, bytes], tuple[str, bytes] | None],
        *,
        tls: tuple[Sequence[PathLike[str] | str] | None, bool, tuple[str, str] | None]
        | None = None,
        durable_replies: bool = False,
        queue_arguments: dict[str, bool | int | str] | None = None,
        consumer_arguments: dict[str, bool | int | str] | None = None,
        shuffle: bool = False,
        durable_requests: bool = False,
    ) -> AmqpClient: ...
    def send(
        self,
        exchange: str,
        routing_key: str,
        body: str,
        *,
        fanout: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        default_queue: dict[str, bool | int | str] | None = None,
        expiration: int | None = None,
        mandatory: bool = False,
        msg_id: str | None = None,
        timeout: float | None = None,
        monitor: float | None = None,
        retries: int | None = None,
    ) -> AmqpRequest:
        """Send JSON to a topic or *fanout* exchange, which is declared first, and with it a queue of
        the routing key's name where its arguments are given by *default_queue*. Never waits. A message
        to a topic exchange that no queue takes is sent again for 15 s after a reconnection. *expiration*
        in milliseconds; *msg_id* is a call's, None of a cast; *retries* None: for ever. A call has
        *timeout* seconds from the moment at which the broker has it, and *monitor* seconds until its first
        reply and between two of them; None: for ever.

        :raises OSError: a name that AMQP has no room for, or no thread to be had.
        """
    @property
    def is_connected(self) -> bool: ...
    def close(self, timeout: float) -> None:
        """End what is under way, and say goodbye to the broker; *timeout* in seconds."""

@final
class AmqpOutbox:
    """The replies of one listener, on their way to the broker by *client*; no thread waits for them.
    *on_failure* is called, in a thread of the client's own, for each that the broker will not have,
    with its queue, its body, and kind and detail as :meth:`AmqpRequest.wait` returns them."""
    def __new__(
        cls, client: AmqpClient, on_failure: Callable[[str, bytes, str, Any], None]
    ) -> AmqpOutbox: ...
    def reply(
        self, queue: str, body: str, *, mandatory: bool = True, missing_for: float = 0.0
    ) -> None:
        """Send JSON to *queue* through the default exchange. Never waits. A queue that is missing
        is waited for *missing_for* seconds; then a *mandatory* reply has failed.

        :raises OSError: a name that AMQP has no room for, or no thread to be had.
        """
    def wait_for_room(self, most: int, timeout: float) -> bool:
        """Wait until less than *most* are unconfirmed, interpreter released; False after *timeout*
        seconds. Those whose queues are missing do not count."""
    def wait_confirmed(self, timeout: float) -> tuple[int, int]:
        """Wait until all are confirmed, at most *timeout* seconds, interpreter released.

        :returns: how many are not, and how many wait for their queues.
        """

@final
class AmqpQueue:
    """A queue as it is declared, bound with *routing_key* to a topic or *fanout* exchange, and
    consumed. *durable* is said of both; *stream*: its consumers go on behind what they have read;
    *own*: deleted when its listener ends. Arguments are bool, int or str."""
    def __new__(
        cls,
        name: str,
        exchange: str,
        routing_key: str,
        *,
        fanout: bool = False,
        durable: bool = False,
        exchange_auto_delete: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, bool | int | str] | None = None,
        consumer_arguments: dict[str, bool | int | str] | None = None,
        stream: bool = False,
        own: bool = False,
    ) -> AmqpQueue: ...

@final
class AmqpSubscriber:
    """The connection of all listeners of a transport in this process, and its thread: made by the
    first listener as *client* makes its own, ended by the last.

    :raises OSError: no descriptor to be had.
    """
    def __new__(cls, client: AmqpClient) -> AmqpSubscriber: ...
    def subscribe(self, queues: Sequence[AmqpQueue], prefetch: int) -> AmqpSubscription:
        """Declare and consume *queues*, of each of which *prefetch* deliveries may be unsettled; 0
        for no limit. Never waits.

        :raises OSError: no queue, a name that AMQP has no room for, closed, or no thread to be had.
        """
    def close(self, timeout: float) -> None:
        """End all listeners and the connection; *timeout* in seconds."""

@final
class AmqpSubscription:
    """What one listener consumes. Collected, it is consumed no more."""
    def wait_standing(self, timeout: float | None = None) -> tuple[str, Any]:
        """Wait, interpreter released, until the queues are consumed: ``consuming``; ``refused`` and
        what was, the broker's code and text, and what can be done; ``unusable`` (the brokers, with these options) and why;
        ``closed`` before that, as the transport is; ``timeout`` after *timeout* seconds."""
    def next(self, timeout: float | None = None) -> AmqpDelivery | None:
        """The next message, waited for *timeout* seconds, interpreter released; None as well once it
        is stopped, and while :meth:`take_closures` was not asked since a closure. Until it is stopped,
        to be called every few minutes: a process in which no listener does that, or settles a
        delivery, is given up."""
    def stop(self, timeout: float) -> bool:
        """End deliveries; what was delivered can still be settled. False after *timeout* seconds:
        then nothing more is handed out but what nothing delivers again, and the consumers are cancelled
        when the broker allows."""
    def close(self, timeout: float) -> bool:
        """Give up what is not settled, delete queues of its own, and close the channel. False after
        *timeout* seconds."""
    @property
    def is_over(self) -> bool:
        """Nothing more will come: what :meth:`next` does not return now, at once, it never will."""
    def take_closures(self) -> list[tuple[str, float | None]]:
        """Why the broker has closed the channel since this was asked last, each time; and for how
        many seconds the first delivery had waited then that was not picked up."""
    def deliver_to(
        self, executor: Executor, handler: Callable[[AmqpDelivery, str], object]
    ) -> None:
        """Have the threads of *executor* call *handler* with each request that arrives from now on, and
        with what :meth:`AmqpDelivery.pick_up` has returned. :meth:`next` gets what *executor* does not
        take, and what is no request in an envelope of oslo.messaging."""
    def has_begun(self, unique_id: str) -> bool:
        """Whether a request of this id has begun to run here."""
    def acknowledge_old(self, longest: float, most: int) -> tuple[list[float], int]:
        """Acknowledge requests that have waited for *longest* seconds and were not picked up, as long
        as fewer than *most* wait that were: nothing delivers them again.

        :returns: how long each has waited, and how many wait that were acknowledged.
        """

@final
class AmqpDelivery:
    """A message that has arrived."""
    @property
    def body(self) -> str | bytes:
        """Text where it is UTF-8."""
    @property
    def message(self) -> str | None:
        """What is in the body, where that is an envelope as oslo.messaging writes it."""
    def pick_up(self, unique_id: str | None = None) -> str:
        """Acknowledge a request that is about to run: ``run``. Otherwise it must not: ``twice``, one
        of this id has begun here, and the broker was told to forget it; ``given back``, as the listener
        has stopped; ``lost`` to a redelivery, as its channel is closed."""
    @property
    def content_type(self) -> str: ...
    @property
    def content_encoding(self) -> str: ...
    @property
    def compression(self) -> str | None:
        """How kombu has compressed the body."""
    @property
    def is_plain_json(self) -> bool:
        """The body is JSON text as it stands."""
    @property
    def delivery_count(self) -> int:
        """How often a quorum queue has delivered it before; 0 of other queues."""
    @property
    def is_kept(self) -> bool:
        """From a queue, which keeps it until it is settled; a stream delivers nothing again."""
    def acknowledge(self) -> bool:
        """Let the broker forget it. False when its channel is closed, and nothing was said."""
    def requeue(self) -> bool:
        """Give it back to its queue; as :meth:`acknowledge`."""
    def give_back(self) -> bool:
        """Let the broker deliver again a request that no thread will pick up here. False when nothing can:
        it was acknowledged, since it had waited for long, or comes from a stream. It is lost then."""
    def reject(self) -> bool:
        """Drop it; as :meth:`acknowledge`."""

@final
class AmqpConnection:
    """One connection; gets heartbeats until it is closed or collected."""
    def beat(self, interval: float) -> None:
        """Send heartbeats from now on: the peer expects something every *interval* seconds.

        :raises ValueError: *interval* is not above 0.
        """
    def write(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Send *data*, whole AMQP frames, interpreter released. *timeout* in seconds.

        :raises TimeoutError: the peer has not taken all of it; the rest stays queued.
        :raises OSError: the connection is lost or closed.
        """
    def post(self, data: bytes | bytearray | memoryview) -> None:
        """Queue *data*, whole AMQP frames, behind what is queued. Never waits for the peer.

        :raises OSError: the connection is lost or closed.
        """
    @property
    def unsent(self) -> int:
        """Bytes that are queued because the peer takes nothing."""
    @property
    def is_readable(self) -> bool:
        """TLS has decrypted something that was not received; the socket may not be readable."""
    def receive(self, most: int = ...) -> bytes | None:
        """What has arrived, at most *most* bytes and 64 KiB; nothing at the end of the stream. Never waits: None
        when nothing has arrived. Interpreter held.

        :raises OSError: the connection is lost or closed.
        """
    def close(self) -> None:
        """Write and receive no more, heartbeats included. The owner shuts the socket down."""
    @property
    def heartbeats(self) -> int:
        """Heartbeats that were sent because the owner was silent."""

@final
class AmqpRequest:
    """A request under way. Collected, it is not sent again, and its replies are dropped."""
    def wait(self) -> tuple[str, Any]:
        """What has become of it, interpreter released: ``reply`` and its body (there may be more);
        of a cast ``taken``, once the broker is responsible for it; ``undeliverable`` with the
        broker's code and text, where it was mandatory; ``failed`` or ``unusable`` (the client, with
        this broker) and why; ``lost`` with its queue; ``timeout`` when its time has passed."""

@final
class Executor:
    """Runs callables on elastic native threads; :class:`osloxide.messaging.executor.Executor` is the public face.
    Starts no thread before the first job. Refuses to work in a process other than its maker's."""
    def __new__(
        cls,
        make_future: Callable[[], Future[Any]],
        max_workers: int,
        *,
        max_queued: int = 0,
        thread_name: str = "rpc",
    ) -> Executor:
        """*make_future* is called for each job; a future whose ``__dict__`` holds no ``_condition``
        may be finished by writing its fields. *max_queued* 0 means no bound; otherwise submit()
        waits for room."""
    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any
    ) -> Future[Any]:
        """:raises RuntimeError: closed, forked, or no thread to be had."""
    def submit_as(self, name: str, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """As submit(), counted under *name*; False as the result counts as a failure."""
    def close(
        self, cancel: bool = False
    ) -> list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]]:
        """Take no more jobs. With *cancel*, return those that no thread had begun: the future, which the
        caller cancels, the function and its arguments. Requests that no Python code has seen yet are
        given back to their broker, or named in a warning where nothing delivers them again. Idempotent."""
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a closed executor has ended, interpreter released, Python signal handlers
        running; False on timeout."""
    def stats(self) -> dict[str, Any]:
        """threads, busy, queued, held, most_queued, begun, cancelled, oldest_wait and total_wait (seconds)."""
