"""Two owners of the wakeup fd: the control thread, and an application that uses asyncio.

Rules: signal.set_wakeup_fd and loop.add_signal_handler (Python library reference).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from test_process_end import running  # noqa: F401  # a fixture

from osloxide.signals.wakeup_fd import SharedWakeupFd

LOOP_OF_ITS_OWN = """
import asyncio

def prepare():
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    loop.run_forever()
    say("asyncio has heard")
    {end}

def to_this_thread():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

class Deaf(Service):
    def wait(self):
        # The main thread waits for a lock, and the kernel tells another thread.
        threading.Thread(target=to_this_thread, daemon=True).start()
        self.stopped.wait()

Service = Deaf
main(20)
"""


@pytest.mark.parametrize("end", ["loop.close()", "pass"], ids=["closed", "left open"])
@pytest.mark.parametrize("flavour", ["THREADING", "EVENTLET"])
def test_an_event_loop_with_signal_handlers_and_the_launcher_hear_both(
    running: object,  # noqa: F811
    flavour: str,
    end: str,
) -> None:
    program = running(LOOP_OF_ITS_OWN.format(end=end), flavour=flavour)  # type: ignore[operator]

    assert program.ended() == 0, program.text()
    assert "asyncio has heard" in program.said()


INSIDE = """
import asyncio

def prepare():
    pass

class Looping(Service):
    def wait(self):
        self.loop = asyncio.new_event_loop()
        self.loop.add_signal_handler(signal.SIGUSR1, say, "asyncio has heard")
        self.loop.call_soon(say, "looping")
        self.loop.run_forever()
        self.loop.close()
        say("looped")
    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)

Service = Looping
main(20)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_waits_in_an_event_loop_hears_its_signals_and_sigterm(
    running: object,  # noqa: F811
    workers: int,
) -> None:
    program = running(INSIDE, workers=workers)  # type: ignore[operator]
    program.expect("looping", workers)
    target = int(program.expect("started", workers)[0].split()[1])

    os.kill(target, signal.SIGUSR1)
    program.expect("asyncio has heard")

    assert program.stop() == 0
    assert "looped" in program.said()


@pytest.fixture
def pipes() -> Iterator[list[socket.socket]]:
    """Two pairs: the first two are one, non-blocking all."""
    with contextlib.ExitStack() as stack:
        ends = [*socket.socketpair(), *socket.socketpair()]
        for end in ends:
            end.setblocking(False)
            stack.enter_context(end)
        yield ends


@contextlib.contextmanager
def shared_by(ours: socket.socket, *, left: int) -> Iterator[SharedWakeupFd]:
    """The wakeup fd of this process is *ours* and the application's, then again what it was.

    :param left: what the interpreter has to have as its own when we give it back.
    """
    before, original = signal.set_wakeup_fd(-1), signal.set_wakeup_fd
    shared = SharedWakeupFd(ours.fileno())
    shared.take()
    try:
        yield shared
    finally:
        shared.give_back()
        assert signal.set_wakeup_fd is original
        assert original(before) == left


def test_an_application_sets_asks_and_takes_back_its_part_alone(
    pipes: list[socket.socket],
) -> None:
    ours, _, theirs, reader = pipes
    original = signal.set_wakeup_fd
    with shared_by(ours, left=-1) as shared:
        assert signal.set_wakeup_fd(theirs.fileno()) == -1
        shared.pass_on(b"\x0a")
        assert reader.recv(8) == b"\x0a"
        assert signal.set_wakeup_fd(-1) == theirs.fileno()
        shared.pass_on(b"\x0a")
        with pytest.raises(BlockingIOError):
            reader.recv(8)
        assert original(ours.fileno(), warn_on_full_buffer=False) == ours.fileno(), "it stays ours"


def test_what_the_original_refuses_is_refused_and_changes_nothing(
    pipes: list[socket.socket],
) -> None:
    ours, _, theirs, reader = pipes
    # The application is the heir.
    with shared_by(ours, left=theirs.fileno()) as shared:
        signal.set_wakeup_fd(theirs.fileno())
        reader.setblocking(True)
        with pytest.raises(ValueError, match="non-blocking"):
            signal.set_wakeup_fd(reader.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            signal.set_wakeup_fd(10**6)
        shared.pass_on(b"\x0c")
        assert reader.recv(8) == b"\x0c"


def test_a_file_that_got_the_number_of_a_closed_descriptor_gets_no_bytes(
    pipes: list[socket.socket],
) -> None:
    ours, _, theirs, _ = pipes
    with shared_by(ours, left=-1) as shared:
        signal.set_wakeup_fd(theirs.fileno())
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        os.dup2(write_end, theirs.fileno())
        shared.pass_on(b"\x0c")
        with pytest.raises(BlockingIOError):
            os.read(read_end, 8)
        os.close(read_end)
        os.close(write_end)
