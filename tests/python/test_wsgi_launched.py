"""The WSGI server under launchers: workers share a socket, drain, reload. Real processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from conftest import Program, wait_until
from support.raw_http import Connection, Incomplete

Start = Callable[..., Program]
Address = tuple[str, int]


def address(program: Program) -> Address:
    ((_, port),) = program.expect("port")
    return "127.0.0.1", int(port)


def ask(where: Address, target: str = "/") -> tuple[int, bool]:
    """Process that answered on a connection of its own, and its ``wsgi.multiprocess``."""
    with Connection(where) as connection:
        answer = connection.request("GET", target)
    assert answer.status == 200
    pid, multiprocess = answer.body.decode().split()
    return int(pid), multiprocess == "True"


def refuses(where: Address) -> bool:
    try:
        Connection(where).close()
    except ConnectionRefusedError:
        return True
    return False


def answers_of_all(program: Program) -> dict[int, bool]:
    """``wsgi.multiprocess`` as each process that serves tells it, by pid.

    Every one of them has then answered its first request, which a server handles alone.
    """
    where = address(program)
    answers: dict[int, bool] = {}

    def all_seen() -> bool:
        answers.update([ask(where)])
        return len(answers) == (len(program.workers()) or 1)

    wait_until(all_seen, "an answer of every process")
    return answers


class Load:
    """A client that asks without pause, each time on a new connection or always on one."""

    def __init__(self, where: Address, *, keeps_alive: bool) -> None:
        self.pids: list[int] = []
        self.failures: list[BaseException] = []
        self._where = where
        self._keeps_alive = keeps_alive
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        connection: Connection | None = None
        while not self._ending.is_set():
            try:
                if connection is None:
                    connection = Connection(self._where)
                answer = connection.request("GET", "/slow?0.002")
                assert answer.status == 200, answer
                self.pids.append(int(answer.body.split()[0]))
                if answer.one("Connection") == "close" or not self._keeps_alive:
                    connection.close()
                    connection = None
            except (OSError, AssertionError, Incomplete) as error:
                self.failures.append(error)
                connection = None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


@pytest.fixture(params=[None, 2], ids=["in process", "workers"])
def web(running: Start, flavour: str, request: pytest.FixtureRequest) -> Iterator[Program]:
    arguments = [] if request.param is None else ["--workers", str(request.param)]
    program = running("web.py", "--backend", flavour, *arguments)
    program.expect("start", request.param or 1)
    yield program
    if program.process.poll() is None:
        program.send(signal.SIGTERM)
        program.ended()


def test_every_worker_serves_and_says_whether_it_has_siblings(web: Program) -> None:
    answers = answers_of_all(web)

    assert set(answers) == set(web.workers() or [web.pid])
    assert set(answers.values()) == {bool(web.workers())}


def test_term_answers_what_is_in_flight_and_refuses_what_is_new(web: Program) -> None:
    where = address(web)
    answers_of_all(web)
    with ExitStack() as connections:
        busy = [connections.enter_context(Connection(where)) for _ in range(4)]
        idle = connections.enter_context(Connection(where))
        assert idle.request().status == 200
        for connection in busy:
            connection.send("GET /slow?1 HTTP/1.1\r\nHost: x\r\n\r\n")
        web.expect("request", 4)

        web.send(signal.SIGTERM)
        wait_until(lambda: refuses(where), "the port to be refused")
        answers = [connection.answer() for connection in busy]

        assert [answer.status for answer in answers] == [200] * 4
        assert {answer.one("Connection") for answer in answers} == {"close"}
        idle.assert_closed()
        assert web.ended() == 0


@pytest.mark.parametrize("told", ["process", "group"])
def test_connections_in_the_backlog_are_served_before_the_end(web: Program, told: str) -> None:
    where = address(web)
    with Load(where, keeps_alive=False) as load:
        wait_until(lambda: len(load.pids) > 20, "some answers")
        if told == "group":
            # As service managers do: the workers may be faster than the supervisor.
            for pid in web.workers():
                web.send(signal.SIGTERM, pid)
        web.send(signal.SIGTERM)
        assert web.ended() == 0

    cut = [error for error in load.failures if not isinstance(error, ConnectionRefusedError)]
    assert cut == []


def test_hup_with_mutate_keeps_processes_and_connections(web: Program) -> None:
    where = address(web)
    processes = web.workers() or [web.pid]
    with Connection(where) as connection:
        before = connection.request().body
        web.send(signal.SIGHUP)
        for pid in processes:
            web.expect("reset", pid=pid)

        assert connection.request().body == before
    assert (web.workers() or [web.pid]) == processes


@pytest.mark.parametrize("keeps_alive", [False, True], ids=["new connections", "keep-alive"])
def test_hup_with_reload_loses_no_request(
    running: Start, flavour: str, *, keeps_alive: bool
) -> None:
    program = running(
        "web.py", "--backend", flavour, "--workers", "2", "--restart-method", "reload"
    )
    program.expect("start", 2)
    where = address(program)
    old = set(program.workers())

    with Load(where, keeps_alive=keeps_alive) as first, Load(where, keeps_alive=keeps_alive):
        wait_until(lambda: len(first.pids) > 20, "some answers")
        program.send(signal.SIGHUP)
        wait_until(lambda: not old & set(program.workers()), "the old workers to leave")
        answered = len(first.pids)
        wait_until(lambda: len(first.pids) > answered + 20, "answers of new workers")
    program.send(signal.SIGTERM)

    assert first.failures == []
    assert program.ended() == 0


def test_a_killed_worker_is_replaced_on_the_same_socket(running: Start) -> None:
    program = running("web.py", "--workers", "2")
    program.expect("start", 2)
    where = address(program)
    victim, survivor = program.workers()

    program.send(signal.SIGKILL, victim)
    program.expect("start", 3)

    assert ask(where)[0] in {survivor, *program.workers()}
    program.send(signal.SIGTERM)
    assert program.ended() == 0


def test_a_port_in_use_ends_the_second_program_with_its_reason(running: Start) -> None:
    program = running("web.py")
    program.expect("start")
    _, port = address(program)
    second = running("taken.py", str(port))

    assert second.ended() != 0
    assert "another process listens there" in second.log
    program.send(signal.SIGTERM)
    assert program.ended() == 0
