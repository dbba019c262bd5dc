"""Promises of the native signals room, with real signals.

Everything runs on the main thread of this process: ``os.kill(os.getpid(), ...)`` is delivered
there. Handlers and the wakeup fd are put back by fixtures.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from osloxide import _native

FOREVER = 20.0  # A wait that lasts this long has failed.


@pytest.fixture(autouse=True)
def wakeup_fd_is_put_back() -> Iterator[None]:
    before = signal.set_wakeup_fd(-1)
    yield
    _native.uninstall_wakeup()
    _native.park(0)
    signal.set_wakeup_fd(before)


@pytest.fixture
def usr1() -> Iterator[list[int]]:
    """Count SIGUSR1 in the list that is returned."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signo, _frame: seen.append(signo))
    yield seen
    signal.signal(signal.SIGUSR1, before)


def send_when_parked(action) -> threading.Thread:
    """Run *action* on a thread once the main thread sleeps in the kernel."""
    main = threading.main_thread().native_id

    def run() -> None:
        deadline = time.monotonic() + FOREVER
        while time.monotonic() < deadline:
            with (
                open(f"/proc/self/task/{main}/wchan") as wchan,
                open(f"/proc/self/task/{main}/stat") as stat,
            ):
                wchan.read()
                if stat.read().rpartition(")")[2].split()[0] == "S":
                    break
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_park_returns_false_at_its_timeout():
    assert _native.park(0.001) is False


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_park_refuses_a_timeout_that_is_no_time(timeout):
    with pytest.raises(ValueError, match="timeout must be a number of seconds"):
        _native.park(timeout)


def test_wake_before_park_is_not_lost():
    _native.wake()
    _native.wake()

    assert _native.park(FOREVER) is True
    assert _native.park(0) is False


def test_wake_from_another_thread_ends_park():
    thread = send_when_parked(_native.wake)

    assert _native.park(FOREVER) is True
    thread.join()


def test_wake_from_a_signal_handler_ends_park():
    before = signal.signal(signal.SIGUSR1, lambda *_: _native.wake())
    try:
        thread = send_when_parked(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert _native.park(FOREVER) is True
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("installed", [True, False])
def test_a_handler_runs_while_parked_and_park_goes_on(usr1, installed):
    if installed:
        _native.install_wakeup()
    ran_while_parked = []

    def act() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + FOREVER
        while not usr1 and time.monotonic() < deadline:
            time.sleep(0.001)
        ran_while_parked.append(bool(usr1))
        _native.wake()

    thread = send_when_parked(act)

    assert _native.park(FOREVER) is True
    thread.join()
    assert ran_while_parked == [True]


@pytest.mark.parametrize("installed", [True, False])
def test_a_signal_that_another_thread_receives_wakes_the_parked_main_thread(usr1, installed):
    if installed:
        _native.install_wakeup()

    def act() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        deadline = time.monotonic() + FOREVER
        while not usr1 and time.monotonic() < deadline:
            time.sleep(0.001)
        _native.wake()

    thread = send_when_parked(act)

    assert _native.park(FOREVER) is True
    thread.join()
    assert usr1


def test_an_exception_of_a_handler_leaves_park():
    def handler(_signo, _frame):
        raise InterruptedError("from the handler")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        thread = send_when_parked(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(InterruptedError, match="from the handler"):
            _native.park(FOREVER)
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.set_wakeup_fd(-1) == -1, "a temporary pipe outlived the exception"


def test_an_earlier_owner_gets_the_bytes_and_is_restored(usr1):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        signal.set_wakeup_fd(ours.fileno())
        _native.install_wakeup()
        _native.install_wakeup()

        os.kill(os.getpid(), signal.SIGUSR1)
        _native.park(0.001)

        assert select.select([theirs], [], [], FOREVER)[0]
        assert theirs.recv(16) == bytes([signal.SIGUSR1])
        _native.uninstall_wakeup()
        assert signal.set_wakeup_fd(-1) == ours.fileno()


def test_an_owner_that_came_later_gets_the_bytes_and_is_not_evicted_by_uninstall(usr1):
    _native.install_wakeup()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        signal.set_wakeup_fd(ours.fileno())
        thread = send_when_parked(lambda: (os.kill(os.getpid(), signal.SIGUSR1), _native.wake()))
        assert _native.park(FOREVER) is True
        thread.join()
        _native.park(0)

        assert select.select([theirs], [], [], FOREVER)[0]
        assert theirs.recv(16) == bytes([signal.SIGUSR1])
        _native.uninstall_wakeup()
        assert signal.set_wakeup_fd(-1) == ours.fileno()


def test_a_vanished_earlier_owner_is_not_restored():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno())
    _native.install_wakeup()
    ours.close()
    theirs.close()

    _native.uninstall_wakeup()

    assert signal.set_wakeup_fd(-1) == -1


def test_an_earlier_owner_that_gave_up_is_forgotten(usr1):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        signal.set_wakeup_fd(ours.fileno())
        _native.install_wakeup()
        signal.set_wakeup_fd(-1)  # What asyncio does when its loop is closed.

        _native.park(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        _native.park(0)

        assert usr1
        assert not select.select([theirs], [], [], 0)[0]
        _native.uninstall_wakeup()
        assert signal.set_wakeup_fd(-1) == -1


def test_a_file_that_got_the_number_of_a_vanished_owner_gets_no_bytes(usr1):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno())
    _native.install_wakeup()
    stranger, other_end = socket.socketpair()
    with stranger, other_end:
        number = ours.detach()
        os.dup2(stranger.fileno(), number)
        theirs.close()

        os.kill(os.getpid(), signal.SIGUSR1)
        _native.park(0)

        assert usr1
        assert not select.select([other_end], [], [], 0)[0]
        _native.uninstall_wakeup()
        assert signal.set_wakeup_fd(-1) == -1
        os.close(number)


def test_install_off_the_main_thread_is_refused():
    errors = []

    def install() -> None:
        try:
            _native.install_wakeup()
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()

    assert len(errors) == 1
    assert "main thread" in errors[0]


def test_a_thread_that_parks_leaves_the_signals_to_the_main_thread(usr1):
    _native.install_wakeup()
    results = []
    thread = threading.Thread(target=lambda: results.append(_native.park(FOREVER)))
    thread.start()
    os.kill(os.getpid(), signal.SIGUSR1)
    deadline = time.monotonic() + FOREVER
    while not usr1 and time.monotonic() < deadline:
        time.sleep(0.001)
    _native.wake()
    thread.join()

    assert results == [True]
    assert usr1


def test_a_child_has_a_pipe_and_a_wakeup_of_its_own(usr1):
    _native.install_wakeup()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _native.install_wakeup()
            _native.wake()
            os.kill(os.getpid(), signal.SIGUSR1)
            if _native.park(FOREVER) and usr1:
                _native.uninstall_wakeup()
                status = 0 if signal.set_wakeup_fd(-1) == -1 else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert not usr1
    assert _native.park(0) is False, "the child's wake() reached its parent"


def test_installing_often_leaks_no_descriptor():
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(100):
        _native.install_wakeup()
        _native.uninstall_wakeup()
        _native.park(0)

    after = sorted(os.listdir("/proc/self/fd"))
    assert len(after) <= len(before) + 1  # The eventfd is made once.
