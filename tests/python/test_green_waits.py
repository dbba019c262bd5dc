"""Timeouts and kill() on native threads: they end waits, reach code that computes, and come in time
or not at all."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _children import run_python

from osloxide import green
from osloxide.green import event, greenpool, greenthread, hubs, queue, semaphore, tpool
from osloxide.green._core.clock import clock
from osloxide.green._core.interruption import GreenletExit
from osloxide.green._core.turns import turns

WITHIN = 45.0
"""Seconds after which a wait that should have ended counts as hung."""


def never_sent() -> None:
    event.Event().wait()


def get_nothing() -> None:
    queue.Queue().get()


def put_nowhere() -> None:
    full = queue.Queue(1)
    full.put(1)
    full.put(2)


def acquire_nothing() -> None:
    semaphore.Semaphore(0).acquire()


def sleep_long() -> None:
    greenthread.sleep(3600)


def wait_for_another() -> None:
    other = greenthread.spawn(sleep_long)
    try:
        other.wait()
    finally:
        other.kill()


def wait_for_a_pool() -> None:
    pool = green.GreenPool(1)
    other = pool.spawn(sleep_long)
    try:
        pool.waitall()
    finally:
        other.kill()


def spawn_in_a_full_pool() -> None:
    pool = green.GreenPool(1)
    other = pool.spawn(sleep_long)
    try:
        pool.spawn(sleep_long)
    finally:
        other.kill()


def read_a_socket() -> None:
    from osloxide.green.green import socket

    one, two = socket.socketpair()
    try:
        one.recv(1)
    finally:
        one.close()
        two.close()


def accept_a_connection() -> None:
    listener = green.listen(("127.0.0.1", 0))
    try:
        listener.accept()
    finally:
        listener.close()


def select_a_socket() -> None:
    from osloxide.green.green import select, socket

    one, two = socket.socketpair()
    try:
        select.select([one], [], [])
    finally:
        one.close()
        two.close()


def ask_a_silent_server(fetch: Callable[[str, int], object]) -> None:
    """What green HTTP clients do with a server that accepts and answers nothing."""
    listener = green.listen(("127.0.0.1", 0))
    try:
        fetch(*listener.getsockname())
    finally:
        listener.close()


def read_an_answer() -> None:
    from osloxide.green.green.http import client

    def fetch(host: str, port: int) -> None:
        connection = client.HTTPConnection(host, port)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        finally:
            connection.close()

    ask_a_silent_server(fetch)


def open_a_url() -> None:
    from osloxide.green.green.urllib import request

    ask_a_silent_server(lambda host, port: request.urlopen(f"http://{host}:{port}/"))


def log_in_by_ftp() -> None:
    from osloxide.green.green import ftplib

    ask_a_silent_server(lambda host, port: ftplib.FTP().connect(host, port))


def get_from_a_standard_queue() -> None:
    from osloxide.green.green import Queue

    Queue.Queue().get()


def wait_for_a_program() -> None:
    from osloxide.green.green import subprocess

    child = subprocess.Popen(["sleep", "3600"])
    try:
        child.wait()
    finally:
        child.kill()
        child.wait()


def wait_on_the_thread_pool() -> None:
    over = threading.Event()
    try:
        tpool.execute(over.wait, WITHIN)
    finally:
        over.set()


def switch_to_the_hub() -> None:
    hubs.get_hub().switch()


WAITS = [
    never_sent,
    get_nothing,
    put_nowhere,
    acquire_nothing,
    sleep_long,
    wait_for_another,
    wait_for_a_pool,
    spawn_in_a_full_pool,
    read_a_socket,
    accept_a_connection,
    select_a_socket,
    read_an_answer,
    open_a_url,
    log_in_by_ftp,
    get_from_a_standard_queue,
    wait_for_a_program,
    wait_on_the_thread_pool,
    switch_to_the_hub,
]


@pytest.mark.parametrize("wait", WAITS)
def test_a_timeout_ends_the_wait(wait) -> None:
    timeout = green.Timeout(0.02)
    try:
        with pytest.raises(green.Timeout) as raised:
            wait()
    finally:
        timeout.cancel()
    assert raised.value is timeout


@pytest.mark.parametrize("wait", WAITS)
def test_kill_ends_the_wait(wait) -> None:
    g = greenthread.spawn(wait)
    greenthread.sleep(0.01)
    g.kill()
    with green.Timeout(WITHIN), pytest.raises(GreenletExit):
        g.wait()
    assert g.dead


def compute() -> None:
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        pass
    raise AssertionError("it was not interrupted")


interrupts_computing = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="from CPython 3.13 on code that computes is left alone"
)


@interrupts_computing
def test_a_timeout_interrupts_code_that_computes() -> None:
    timeout = green.Timeout(0.02)
    with pytest.raises(green.Timeout) as raised:
        compute()
    assert raised.value is timeout


@interrupts_computing
def test_kill_interrupts_code_that_computes() -> None:
    g = greenthread.spawn(compute)
    greenthread.sleep(0.01)
    g.kill()
    with green.Timeout(WITHIN), pytest.raises(GreenletExit):
        g.wait()


@interrupts_computing
def test_an_exception_of_ones_own_interrupts_code_that_computes() -> None:
    error = LookupError("late")
    green.Timeout(0.02, error)
    with pytest.raises(LookupError) as raised:
        compute()
    assert raised.value is error


def test_a_timeout_comes_at_the_next_wait_of_code_that_computes() -> None:
    def compute_and_wait() -> None:
        with green.Timeout(0.001):
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
            greenthread.sleep(WITHIN)

    with pytest.raises(green.Timeout):
        compute_and_wait()


def test_kill_ends_the_next_wait_of_code_that_computes() -> None:
    def compute_and_wait() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        never_sent()

    g = greenthread.spawn(compute_and_wait)
    greenthread.sleep(0.01)
    g.kill()
    with green.Timeout(WITHIN), pytest.raises(GreenletExit):
        g.wait()


def test_a_kill_of_a_wait_in_foreign_code_returns_at_once_and_comes_when_that_wait_ends() -> None:
    """As of a task that sleeps in ``time.sleep()``, which a service takes for eventlet's."""
    reader, writer = os.pipe()
    begun = threading.Event()

    def read_on() -> None:
        begun.set()
        os.read(reader, 1)
        never_sent()

    try:
        g = greenthread.spawn(read_on)
        while not begun.is_set():
            greenthread.sleep(0)
        g.kill()
        assert not g.dead, "it ended, or kill() waited for it"
        os.write(writer, b"x")
        with green.Timeout(WITHIN), pytest.raises(GreenletExit):
            g.wait()
    finally:
        os.close(reader)
        os.close(writer)


def test_a_timeout_ends_a_loop_of_short_waits_in_foreign_code() -> None:
    """As a loop around the calls of a database's driver is."""

    def loop() -> None:
        end = time.monotonic() + WITHIN
        with green.Timeout(0.01):
            while time.monotonic() < end:
                select.select([], [], [], 0.002)

    with pytest.raises(green.Timeout):
        loop()


def test_a_timeout_in_foreign_code_comes_when_that_returns() -> None:
    gate = threading.Lock()
    gate.acquire()
    threading.Timer(0.5, gate.release).start()
    passed = []

    def wait() -> None:
        with green.Timeout(0.02):
            gate.acquire()
            passed.append("the code after the foreign call")

    with pytest.raises(green.Timeout):
        wait()
    assert gate.locked()
    assert not passed


def wait_in_select() -> None:
    select.select([], [], [], 0.0005)


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=0.0005)


@pytest.mark.parametrize("step", [time.monotonic, wait_in_select, wait_for_a_lock])
def test_a_timeout_never_comes_after_its_block(step: Callable[[], object]) -> None:
    """Blocks that end at about the moment of their timeout; what follows must run undisturbed."""
    late = 0
    for number in range(400):
        try:
            with green.Timeout(0.001, False):
                end = time.monotonic() + 0.0005 + number * 0.0001
                while time.monotonic() < end:
                    step()
            mark = time.monotonic() + 0.0002
            while time.monotonic() < mark:
                step()
        except green.Timeout:
            late += 1
    assert late == 0


def test_a_cancelled_timeout_is_not_raised() -> None:
    timeout = green.Timeout(0.005)
    end = time.monotonic() + 0.01
    while time.monotonic() < end:
        pass
    timeout.cancel()
    for _ in range(20):
        greenthread.sleep(0.005)


def test_the_nearest_of_nested_timeouts_is_raised() -> None:
    with green.Timeout(WITHIN) as outer:
        with pytest.raises(green.Timeout) as raised, green.Timeout(0.01) as inner:
            greenthread.sleep(WITHIN)
        assert raised.value is inner
        assert outer.pending


def test_an_item_is_not_lost_with_a_reader_that_is_killed() -> None:
    items: queue.Queue = queue.Queue()
    for number in range(200):
        reader = greenthread.spawn(items.get)
        greenthread.sleep(0)
        threading.Thread(target=items.put, args=(number,)).start()
        reader.kill()
        with green.Timeout(WITHIN):
            try:
                got = reader.wait()
            except GreenletExit:
                got = items.get()
        assert got == number


def test_native_threads_send_to_greenthreads_and_back() -> None:
    there, back = queue.Queue(), queue.Queue()

    def echo() -> None:
        for _ in range(500):
            back.put(there.get())

    native = threading.Thread(target=echo)
    native.start()
    with green.Timeout(WITHIN):
        for number in range(500):
            there.put(number)
            assert back.get() == number
    native.join(WITHIN)
    assert not native.is_alive()


def test_a_holder_that_blocks_elsewhere_holds_no_other_up() -> None:
    gate = threading.Event()
    reached = greenthread.spawn(gate.set)
    assert gate.wait(WITHIN), "the greenthread waits for its maker, which waits for it"
    reached.wait()


def test_a_holder_that_computes_does_not_stop_the_others_for_ever() -> None:
    done: list[int] = []
    greenthread.spawn(done.append, 1)
    deadline = time.monotonic() + WITHIN
    while not done:
        assert time.monotonic() < deadline


def test_the_baton_is_with_one_thread_at_a_time() -> None:
    """Read, change, write: without waits in between nothing is lost."""
    counter = [0]

    def count() -> None:
        for _ in range(50):
            value = counter[0]
            for _ in range(20):
                pass
            counter[0] = value + 1
            greenthread.sleep(0)

    pool = green.GreenPool(20)
    for _ in range(20):
        pool.spawn_n(count)
    with green.Timeout(WITHIN):
        pool.waitall()
    assert counter[0] == 1000


def test_what_is_spawned_begins_when_its_maker_waits() -> None:
    order = []
    greenthread.spawn(order.append, "spawned")
    order.append("maker")
    greenthread.sleep(0)
    assert order == ["maker", "spawned"]


def test_those_that_are_ready_go_on_in_their_order() -> None:
    order: list[int] = []
    gate = event.Event()

    def wait(number: int) -> None:
        gate.wait()
        order.append(number)

    threads = [greenthread.spawn(wait, number) for number in range(20)]
    greenthread.sleep(0)
    gate.send()
    for thread in threads:
        thread.wait()
    assert order == list(range(20))


def test_thread_local_data_ends_with_its_greenthread() -> None:
    local = threading.local()

    def leave_something() -> bool:
        seen = hasattr(local, "value")
        local.value = 1
        return seen

    assert not any(greenthread.spawn(leave_something).wait() for _ in range(20))


def test_a_spawn_in_the_future_costs_no_thread() -> None:
    before = threading.active_count()
    later = [greenthread.spawn_after(3600, compute) for _ in range(1000)]
    # The clock's.
    assert threading.active_count() <= before + 1
    for g in later:
        g.cancel()
    assert all(g.dead for g in later)


def test_a_sleeper_wakes_whatever_others_give_up() -> None:
    """Timers that are taken back, at all moments, take no other along."""
    woken = [greenthread.spawn(greenthread.sleep, 0.3) for _ in range(5)]
    items: queue.Queue = queue.Queue()
    for number in range(300):
        with pytest.raises(queue.Empty):
            items.get(timeout=0.0001)
        short = greenthread.spawn(greenthread.sleep, 0.0005)
        with green.Timeout(0.0005 + number % 3 * 0.0002, False):
            greenthread.sleep(0.0005)
        short.kill()
    with green.Timeout(WITHIN):
        for g in woken:
            g.wait()


def test_nothing_runs_when_nothing_is_left() -> None:
    greenthread.sleep(0.001)
    deadline = time.monotonic() + WITHIN
    while any(thread.name == "green-clock" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, (clock.heap, clock.readers, clock.writers)
        time.sleep(0.01)
    assert not turns.ready


def test_no_call_is_lost_while_the_pool_of_native_threads_is_ended() -> None:
    def call(told: event.Event) -> int:
        told.send(None)
        return tpool.execute(lambda: 7)

    try:
        for _ in range(50):
            told = event.Event()
            caller = greenthread.spawn(call, told)
            told.wait()
            tpool.killall()
            with green.Timeout(WITHIN):
                assert caller.wait() == 7
    finally:
        tpool.killall()


def test_a_listener_that_is_closed_ends_accept_with_enotconn() -> None:
    listener = green.listen(("127.0.0.1", 0))
    waiting = greenthread.spawn(listener.accept)
    greenthread.sleep(0)
    listener.close()

    with pytest.raises(hubs.IOClosed) as caught:
        waiting.wait()
    assert caught.value.errno == errno.ENOTCONN


def test_a_listener_that_is_closed_as_its_wait_ends_is_enotconn_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = green.listen(("127.0.0.1", 0))
    # A signal handler that runs when the wait is over, and before the next look.
    monkeypatch.setattr(type(listener), "_wait", lambda self, **_: self.close())

    with pytest.raises(hubs.IOClosed) as caught:
        listener.accept()
    assert caught.value.errno == errno.ENOTCONN


def test_a_standard_queue_of_size_0_has_no_bound() -> None:
    from osloxide.green.green import Queue

    items: Any = Queue.Queue()
    with green.Timeout(WITHIN):
        for number in range(100):
            items.put(number)
    assert items.qsize() == 100


def test_green_copies_leave_the_standard_modules_alone() -> None:
    # First, as in most programs: the green packages must not pass these on as their own.
    import http.client
    import urllib.request

    from osloxide.green.green.http import client
    from osloxide.green.green.urllib import request

    assert sys.modules["http.client"] is http.client is urllib.request.http.client
    assert http.client.socket is sys.modules["socket"]
    assert client.HTTPConnection is not http.client.HTTPConnection
    assert request.http.client.HTTPConnection is client.HTTPConnection
    # What a program sets in the copy holds there, as in eventlet's.
    before, client._MAXHEADERS = client._MAXHEADERS, 1
    try:
        with pytest.raises(client.HTTPException, match="more than 1 headers"):
            client.parse_headers(io.BytesIO(b"a: 1\r\nb: 2\r\n\r\n"))
        assert http.client._MAXHEADERS != 1
    finally:
        client._MAXHEADERS = before


def test_what_a_green_copy_imports_late_is_there() -> None:
    """In processes where nothing else has imported it."""
    result = run_python(
        """
from osloxide.green.green.urllib import request
opener = request.build_opener(request.HTTPCookieProcessor())
print([type(it).__name__ for it in opener.handlers if "Cookie" in type(it).__name__])
from osloxide.green.green.http import cookiejar
assert request.http.cookiejar is cookiejar
"""
    )
    assert result.stdout == "['HTTPCookieProcessor']\n", result.stderr


def test_every_import_of_a_green_copy_is_bound(tmp_path: Path, monkeypatch: Any) -> None:
    """All ways to write one, of modules with and without a green one in their place."""
    from osloxide.green._core import copies
    from osloxide.green.green import http, os
    from osloxide.green.green.http import client

    (tmp_path / "copied.py").write_text(
        "import collections.abc, email.utils, os.path, urllib.parse, urllib.robotparser\n"
        "import http.client, http.cookies as biscuits, http.server\n"
        "from http import HTTPStatus, cookiejar\n"
        "from http.client import HTTPConnection\n"
        "from os.path import join\n"
        "def late():\n    import http.cookiejar\n    return http.cookiejar.CookieJar()\n"
        "def absent(name):\n    exec(name, globals())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    copy: dict[str, Any] = {"__name__": "copied"}
    copies.fill(copy, "copied", {"http": http, "os": os})

    assert copy["http"] is http
    assert copy["http"].client is client
    assert copy["HTTPConnection"] is client.HTTPConnection
    assert copy["biscuits"].SimpleCookie is copy["http"].cookies.SimpleCookie
    assert copy["cookiejar"] is copy["http"].cookiejar
    assert copy["http"].server.HTTPServer
    assert copy["os"] is os
    assert copy["join"] is os.path.join
    assert copy["urllib"].robotparser.RobotFileParser
    assert copy["email"].utils.quote
    assert isinstance(copy["late"](), copy["cookiejar"].CookieJar)
    with pytest.raises(ModuleNotFoundError):
        copy["absent"]("import http.absent")
    with pytest.raises(ImportError):
        copy["absent"]("from http import absent")


def test_a_wait_for_any_child_sleeps_and_a_timeout_ends_it() -> None:
    """A service that forks its workers itself waits so; a process of its own has no other child."""
    result = run_python(
        """
import signal, sys, time
from osloxide import green
from osloxide.green.green import os
child = os.fork()
if child == 0:
    signal.pause()
try:
    with green.Timeout(0.02):
        os.wait()
except green.Timeout:
    print("timeout")
green.spawn_after(1, os.kill, child, signal.SIGTERM)
assert os.wait() == (child, signal.SIGTERM)
try:
    os.wait()
except ChildProcessError:
    print("no child")
"""
    )
    assert result.stdout == "timeout\nno child\n", result.stderr


@pytest.mark.parametrize("group", ["own", "other"])
def test_a_wait_for_a_process_group_sleeps_beside_an_ended_child_of_another_group(
    group: str,
) -> None:
    result = run_python(
        """
import os, signal, sys
from osloxide import green
from osloxide.green.green import os as green_os

def child(group, action):
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    if group:
        os.setpgid(pid, pid)
    return pid

ended = child(False, lambda: os.setpgid(0, 0))
os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
meant = child(sys.argv[1] == "other", signal.pause)
calls, waitpid = [], os.waitpid
os.waitpid = lambda *words: calls.append(words) or waitpid(*words)
green.spawn_after(0.5, os.kill, meant, signal.SIGTERM)
wanted = -meant if sys.argv[1] == "other" else 0
assert green_os.waitpid(wanted, 0) == (meant, signal.SIGTERM)
try:
    green_os.waitpid(wanted, 0)
except ChildProcessError:
    print("no child")
assert green_os.wait() == (ended, 0)
# One look before each wait, and one in each second of it.
assert len(calls) < 100, len(calls)
""",
        group,
    )
    assert result.stdout == "no child\n", result.stderr
    assert result.returncode == 0, result.stderr


def test_a_wait_for_what_is_ready_at_once_ends_no_later_wait(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("epoll(7) takes no regular file: it is always ready")
    with (tmp_path / "file").open() as file:
        hubs.trampoline(file, read=True)
    with pytest.raises(green.Timeout), green.Timeout(0.02):
        hubs.get_hub().switch()


def test_the_thread_of_a_greenthread_has_the_names_that_eventlet_gives_it() -> None:
    def look() -> tuple[object, ...]:
        thread: Any = threading.current_thread()
        thread.set_name("foo")
        return repr(thread), thread.name, thread.get_name(), thread.isAlive(), thread.is_daemon()

    shown, *rest = greenthread.spawn(look).wait()
    assert shown.startswith("<_GreenThread(")
    assert rest == ["foo", "foo", True, True]


@pytest.mark.parametrize(
    ("spawn", "place", "step"),
    [("spawn", greenthread, "spawn"), ("spawn_n", greenpool, "hold")],
    ids=["spawn", "spawn_n"],
)
def test_waitall_returns_when_one_begins_as_the_last_ends(
    spawn: str, place: Any, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds up a server that is to end, where connections follow each other closely."""
    pool, gate = green.GreenPool(2), event.Event()
    last = pool.spawn(gate.wait)
    waiting = greenthread.spawn(pool.waitall)
    greenthread.sleep(0)
    begin = getattr(place, step)

    def let_the_last_end_first(*arguments: Any, **keywords: Any) -> Any:
        gate.send()
        last.wait()
        return begin(*arguments, **keywords)

    monkeypatch.setattr(place, step, let_the_last_end_first)
    getattr(pool, spawn)(greenthread.sleep, 0)
    with green.Timeout(WITHIN):
        waiting.wait()


def test_a_put_whose_item_cannot_be_compared_raises_in_its_own_greenthread() -> None:
    ordered = queue.PriorityQueue(2)
    ordered.put((1, object()))
    ordered.put((2, object()))
    putters = [greenthread.spawn(ordered.put, item) for item in ((2, object()), (3, object()))]
    greenthread.sleep(0)

    ordered.get()

    with green.Timeout(WITHIN), pytest.raises(TypeError):
        putters[0].wait()
    assert ordered.putting() == 1
    ordered.get()  # as with heapq, an item that raised is among those that were put
    with green.Timeout(WITHIN):
        putters[1].wait()
    assert ordered.putting() == 0


@pytest.mark.parametrize("way", ["spawn", "spawn_n"])
def test_a_spawn_that_is_ended_as_it_waits_for_its_turn_keeps_no_place(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``kill()`` does where another greenthread has the baton."""

    def ended() -> None:
        raise GreenletExit

    pool = green.GreenPool(1)
    with monkeypatch.context() as patched:
        patched.setattr(greenpool, "hold", ended)
        patched.setattr(greenthread._waits, "hold", ended)
        with pytest.raises(GreenletExit):
            getattr(pool, way)(sleep_long)

    assert (pool.running(), pool.free()) == (0, 1)
    assert pool.spawn(int).wait() == 0
    with green.Timeout(WITHIN):
        pool.waitall()
