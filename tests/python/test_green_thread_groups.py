"""A thread group of the EVENTLET backend ends threads in eventlet's waits, as eventlet kills them.

Rules: oslo_service.backend._eventlet.threadgroup (oslo.service 4.2 to 4.8), whose ``stop()`` kills
greenthreads and whose ``wait()`` waits for what they do then; eventlet.greenpool for a full group.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _children import run_python
from waiting import wait_until

from osloxide import green
from osloxide.backends.eventlet import threadgroup
from osloxide.backends.threading import threadgroup as threading_backend
from osloxide.green import event, wsgi
from osloxide.green._core import outsiders, turns
from osloxide.green._core.interruption import GreenletExit

TIMEOUT = 30.0
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def accept() -> None:
    with contextlib.closing(green.listen(("127.0.0.1", 0))) as listener:
        listener.accept()


def wait_for_another() -> None:
    other = green.spawn(green.sleep, 3600)
    try:
        other.wait()
    finally:
        other.kill()


WAITS: dict[str, Callable[[], object]] = {
    "sleep": lambda: green.sleep(3600),
    "event": lambda: event.Event().wait(),
    "queue": lambda: green.Queue().get(),
    "semaphore": lambda: green.Semaphore(0).acquire(),
    "greenthread": wait_for_another,
    "accept": accept,
}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Threads wait for it; opened at the end of the test in any case."""
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture
def group() -> Iterator[threadgroup.ThreadGroup]:
    made = threadgroup.ThreadGroup()
    yield made
    made.stop()


def is_parked(handle: Any) -> bool:
    """Whether the thread waits in something of eventlet's."""
    standing = outsiders.standing_for(handle.thread)
    return standing is not None and standing._state == turns.PARKED


@pytest.mark.parametrize("kind", WAITS)
def test_a_stop_ends_a_thread_in_a_wait_of_eventlets_and_wait_awaits_its_cleanup(
    group: threadgroup.ThreadGroup, kind: str
) -> None:
    seen: list[str] = []

    def work() -> None:
        try:
            WAITS[kind]()
        except GreenletExit:
            seen.append("killed")
            raise
        finally:
            green.sleep(0)
            seen.append("cleaned")

    handle = group.add_thread(work)
    wait_until(lambda: is_parked(handle), "it waits", TIMEOUT)

    group.stop()
    group.wait()

    assert seen == ["killed", "cleaned"]
    with pytest.raises(GreenletExit):
        handle.wait()
    assert group.threads == []


def test_the_end_of_a_thread_reaches_those_that_are_linked_to_it(
    group: threadgroup.ThreadGroup,
) -> None:
    seen: list[Any] = []

    def link(outcome: Any, word: str) -> None:
        with pytest.raises(GreenletExit):
            outcome.wait()
        seen.append(word)

    handle = group.add_thread(green.sleep, 3600)
    handle.link(link, "linked")
    wait_until(lambda: is_parked(handle), "it waits", TIMEOUT)

    handle.stop()
    handle.thread.join(TIMEOUT)

    assert seen == ["linked"]


def test_a_thread_that_stops_itself_ends_there(group: threadgroup.ThreadGroup) -> None:
    seen: list[str] = []
    handle: list[Any] = []
    known = threading.Event()

    def work() -> None:
        known.wait(TIMEOUT)
        green.sleep(0)
        handle[0].stop()
        seen.append("went on")

    handle.append(group.add_thread(work))
    known.set()

    with pytest.raises(GreenletExit):
        handle[0].wait()
    assert seen == []


def test_a_server_in_a_stopped_group_answers_what_it_has_and_wait_awaits_it(
    group: threadgroup.ThreadGroup, gate: threading.Event
) -> None:
    entered = threading.Event()

    def site(_environ: Any, start_response: Any) -> list[bytes]:
        entered.set()
        gate.wait(TIMEOUT)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    listener = green.listen(("127.0.0.1", 0))
    log, pool = io.StringIO(), green.GreenPool(1)
    group.add_thread(wsgi.server, listener, site, log=log, custom_pool=pool)
    with contextlib.ExitStack() as clients:
        connected = []
        for number in range(3):
            client = clients.enter_context(
                contextlib.closing(green.connect(listener.getsockname()))
            )
            client.sendall(REQUEST)
            connected.append(client)
            if number == 0:
                assert entered.wait(TIMEOUT)
        group.stop()
        waiter = threading.Thread(target=group.wait)
        waiter.start()
        gate.set()
        with green.Timeout(TIMEOUT):
            answers = [b"".join(iter(lambda c=c: c.recv(4096), b"")) for c in connected]
        waiter.join(TIMEOUT)
        assert not waiter.is_alive()
    for text in answers:
        assert text.startswith(b"HTTP/1.1 200"), answers
    assert "wsgi exited" in log.getvalue()


def assert_ends_at_its_next_wait(
    group: threadgroup.ThreadGroup,
    gate: threading.Event,
    work: Callable[[], None],
    begun: threading.Event,
    ended: threading.Event,
) -> None:
    """*work* is stopped before *gate* opens, is not awaited, and ends behind it."""
    group.add_thread(work)
    assert begun.wait(TIMEOUT)

    group.stop()
    group.wait()

    assert not ended.is_set()
    gate.set()
    assert ended.wait(TIMEOUT)


def test_a_thread_that_comes_to_no_such_wait_is_not_awaited_for_long_and_ends_at_the_next(
    group: threadgroup.ThreadGroup, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outsiders, "UNHEARD_AFTER", 0.05)
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        green.sleep(0)
        begun.set()
        try:
            gate.wait()
            green.sleep(3600)
        except GreenletExit:
            ended.set()

    assert_ends_at_its_next_wait(group, gate, work, begun, ended)


def test_a_thread_whose_first_such_wait_comes_after_the_stop_ends_there(
    group: threadgroup.ThreadGroup, gate: threading.Event
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait()
        try:
            green.sleep(3600)
        except GreenletExit:
            ended.set()

    assert_ends_at_its_next_wait(group, gate, work, begun, ended)


def test_a_graceful_stop_interrupts_nothing(group: threadgroup.ThreadGroup) -> None:
    told, seen = event.Event(), []
    handle = group.add_thread(lambda: seen.append(told.wait()))
    wait_until(lambda: is_parked(handle), "it waits", TIMEOUT)
    stopper = threading.Thread(target=group.stop, kwargs={"graceful": True})
    stopper.start()

    told.send("told")
    stopper.join(TIMEOUT)

    assert seen == ["told"]


def test_a_group_of_the_threading_backend_interrupts_nothing() -> None:
    group = threading_backend.ThreadGroup()
    told, seen = event.Event(), []
    handle = group.add_thread(lambda: seen.append(told.wait()))
    wait_until(lambda: is_parked(handle), "it waits", TIMEOUT)

    group.stop()
    group.wait()

    told.send("told")
    handle.wait()
    assert seen == ["told"]


def test_a_cancel_with_a_timeout_ends_what_waits(group: threadgroup.ThreadGroup) -> None:
    handle = group.add_thread(green.sleep, 3600)
    wait_until(lambda: is_parked(handle), "it waits", TIMEOUT)

    group.cancel(timeout=0.01)

    with pytest.raises(GreenletExit):
        handle.wait()


def test_a_thread_of_a_full_group_that_adds_another_runs_it_itself() -> None:
    """As ``GreenPool.spawn()`` does: nothing else could ever make room."""
    group = threadgroup.ThreadGroup(1)
    seen: list[Any] = []

    def inner(word: str) -> str:
        seen.append((word, threading.get_ident()))
        return word

    def fail() -> None:
        raise KeyError("planted")

    def outer() -> None:
        handle = group.add_thread(inner, "inner")
        seen.append((handle.wait(), threading.get_ident()))
        with pytest.raises(KeyError, match="planted"):
            group.add_thread(fail)

    handle = group.add_thread(outer)
    handle.thread.join(TIMEOUT)

    assert seen == [("inner", handle.ident)] * 2
    handle.wait()
    group.wait()
    assert group.threads == []


ASKED_INSIDE: dict[str, Callable[[threadgroup.ThreadGroup], object]] = {
    "stop": lambda group: group.stop(graceful=True),
    "wait": lambda group: group.wait(),
    "cancel": lambda group: group.cancel(timeout=0.01),
}


@pytest.mark.parametrize("asked", ASKED_INSIDE)
def test_what_a_thread_of_a_full_group_runs_itself_may_wait_for_the_group(asked: str) -> None:
    group = threadgroup.ThreadGroup(1)
    seen: list[Any] = []

    def inner() -> None:
        ASKED_INSIDE[asked](group)
        seen.append([entry.thread for entry in group.threads])

    handle = group.add_thread(lambda: group.add_thread(inner))
    handle.thread.join(TIMEOUT)

    assert not handle.thread.is_alive()
    handle.wait()
    assert seen == [[handle.thread]]
    assert group.threads == []


def test_a_thread_that_is_ended_while_it_stops_its_group_ends_the_others_first() -> None:
    """As upstream's does: a thread that it ends may stop the group in its cleanup."""
    group = threadgroup.ThreadGroup()
    may_stop = event.Event()
    ended: list[str] = []

    def stopper() -> None:
        may_stop.wait()
        group.stop()
        ended.append("stopper went on")

    def avenger() -> None:
        try:
            green.sleep(3600)
        finally:
            stopping_thread.stop()

    def bystander() -> None:
        try:
            green.sleep(3600)
        finally:
            ended.append("bystander")

    stopping_thread = group.add_thread(stopper)
    handles = [stopping_thread, group.add_thread(avenger), group.add_thread(bystander)]
    for handle in handles:
        wait_until(lambda handle=handle: is_parked(handle), "it waits", TIMEOUT)

    may_stop.send()
    for handle in handles:
        handle.thread.join(TIMEOUT)

    assert sorted(ended) == ["bystander", "stopper went on"]
    assert group.threads == []


@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), ("-7", ValueError), ("many", TypeError)]
)
def test_a_size_that_is_none_is_refused(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="thread_pool_size"):
        threadgroup.ThreadGroup(size)


def test_a_worker_waits_for_no_timer_that_runs_in_its_parent_alone() -> None:
    # Begun when the service is made, which is before the fork.
    result = run_python("""
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import os
import eventlet
eventlet.monkey_patch()
from oslo_config import cfg
from oslo_service import service

class Service(service.Service):
    def __init__(self):
        super().__init__()
        self.timer = self.tg.add_timer(3600, lambda: None, initial_delay=3600)

    def start(self):
        os.kill(os.getppid(), 15)

    def stop(self, graceful=True):
        self.timer.stop()
        super().stop(graceful)

conf = cfg.ConfigOpts()
conf([])
launcher = service.ProcessLauncher(conf)
launcher.launch_service(Service(), workers=1)
launcher.wait()
print("ended")
""")
    assert (result.returncode, result.stdout) == (0, "ended\n"), result.stderr[-3000:]
