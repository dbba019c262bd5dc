"""``wsgi.file_wrapper``: what is sent of a file, by whom, and what happens when it goes wrong."""

from __future__ import annotations

import gzip
import io
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.raw_http import DEADLINE, Connection, Incomplete, connect, serving
from waiting import until

LARGE = 3_000_001
# Far more than the kernel buffers for one connection.
ENDLESS = 64 << 20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(LARGE))
    return path


def wrapping(
    opened: Callable[[], Any], headers: Any = (), status: str = "200 OK"
) -> Callable[..., Any]:
    """An application that answers with the file that *opened* returns."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(headers))
        return environ["wsgi.file_wrapper"](opened())

    return app


def test_a_large_file_is_sent_by_the_kernel_and_the_connection_kept(large: Path) -> None:
    descriptors: list[int] = []

    def opened() -> Any:
        file = large.open("rb")
        descriptors.append(os.dup(file.fileno()))
        return file

    with serving(wrapping(opened)) as server, connect(server) as connection:
        for _ in range(2):
            answer = connection.request()
            assert answer.one("Content-Length") == str(LARGE)
            assert answer.body == large.read_bytes()
    for descriptor in descriptors:
        # Reading the file would have moved the offset that both descriptors share.
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537])
def test_a_file_of_any_size_gets_its_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))

    with serving(wrapping(lambda: path.open("rb"))) as server, connect(server) as connection:
        answer = connection.request()
        connection.assert_open()

    assert answer.body == path.read_bytes()
    assert size == 0 or answer.one("Content-Length") == str(size)


@pytest.mark.parametrize("length", [1000, 1_000_000])
def test_a_range_begins_where_the_file_stands_and_ends_with_the_length(
    large: Path, length: int
) -> None:
    def opened() -> Any:
        file = large.open("rb")
        file.seek(1_234_567)
        file.read(3)  # reads ahead: the descriptor stands elsewhere
        return file

    app = wrapping(opened, [("Content-Length", str(length))], "206 Partial Content")
    with serving(app) as server, connect(server) as connection:
        body = connection.request().body
        connection.assert_open()

    assert body == large.read_bytes()[1_234_570 : 1_234_570 + length]


def test_an_object_longer_than_its_declared_length_is_no_mistake(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = wrapping(lambda: io.BytesIO(b"x" * 200_000), [("Content-Length", "100001")])

    with serving(app) as server, connect(server) as connection:
        assert connection.request().body == b"x" * 100_001
        connection.assert_open()
    assert not [line for line in caplog.records if line.levelno >= logging.ERROR]


def test_head_tells_the_length_and_sends_no_byte(large: Path) -> None:
    with (
        serving(wrapping(lambda: large.open("rb"))) as server,
        connect(server) as connection,
    ):
        assert connection.request("HEAD").one("Content-Length") == str(LARGE)
        connection.assert_open()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_no_file_follows_where_http_allows_no_body(large: Path, status: str) -> None:
    app = wrapping(lambda: large.open("rb"), status=status)

    with serving(app) as server, connect(server) as connection:
        assert connection.request().one("Content-Length") is None
        connection.assert_open()


def test_an_object_that_means_more_than_its_descriptor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"plain" * 100_000)

    with serving(wrapping(lambda: gzip.open(path))) as server, connect(server) as connection:
        assert connection.request().body == b"plain" * 100_000


def test_a_buffered_reader_over_something_else_is_read(large: Path) -> None:
    class Upper(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            count = super().readinto(buffer) or 0
            memoryview(buffer)[:count] = b"U" * count
            return count

    app = wrapping(lambda: io.BufferedReader(Upper(large)))
    with serving(app) as server, connect(server) as connection:
        assert connection.request().body == b"U" * LARGE


def test_a_file_of_proc_is_read_to_its_end() -> None:
    status = wrapping(lambda: io.FileIO("/proc/self/status"))

    with serving(status) as server, connect(server) as connection:
        assert connection.request().body.startswith(b"Name:")


def test_a_pipe_is_streamed() -> None:
    def opened() -> Any:
        reading, writing = os.pipe()
        os.write(writing, b"from a pipe")
        os.close(writing)
        return os.fdopen(reading, "rb")

    with serving(wrapping(opened)) as server, connect(server) as connection:
        assert connection.request().body == b"from a pipe"


def test_a_file_shorter_than_declared_cuts_the_connection_and_is_logged(
    large: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = wrapping(lambda: large.open("rb"), [("Content-Length", str(LARGE + 7))])

    with serving(app) as server, connect(server) as connection, pytest.raises(Incomplete):
        connection.request()
    assert f"gave {LARGE} of the {LARGE + 7} bytes" in caplog.text


def endless(tmp_path: Path) -> Path:
    path = tmp_path / "endless"
    with path.open("wb") as file:
        file.truncate(ENDLESS)
    return path


def test_a_file_that_shrinks_while_it_is_sent_cuts_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = endless(tmp_path)

    with serving(wrapping(lambda: path.open("rb"))) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.head().one("Content-Length") == str(ENDLESS)
        os.truncate(path, 1)
        with pytest.raises(Incomplete):
            connection.exactly(ENDLESS)
        assert until(lambda: f"of the {ENDLESS} bytes" in caplog.text)


def test_a_file_is_closed_once_its_client_has_vanished(tmp_path: Path) -> None:
    path = endless(tmp_path)
    files: list[Any] = []

    def opened() -> Any:
        files.append(path.open("rb"))
        return files[-1]

    with serving(wrapping(opened)) as server:
        connection = connect(server)
        connection.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        connection.head()
        connection.reset()
        assert until(lambda: files[0].closed)
        with connect(server) as other:
            assert other.request("HEAD").status == 200


def test_a_client_that_stops_taking_a_file_is_given_up(tmp_path: Path) -> None:
    path = endless(tmp_path)
    files: list[Any] = []

    def opened() -> Any:
        files.append(path.open("rb"))
        return files[-1]

    options = {"client_socket_timeout": 1}
    with (
        serving(wrapping(opened), options=options) as server,
        connect(server) as connection,
    ):
        connection.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert until(lambda: bool(files) and files[0].closed)


def test_an_application_that_closes_its_file_early_sends_nothing_else(
    large: Path, tmp_path: Path
) -> None:
    other = tmp_path / "secret"
    other.write_bytes(b"s" * LARGE)
    held: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        file = large.open("rb")
        number = file.fileno()
        wrapper = environ["wsgi.file_wrapper"](file)
        file.close()
        held.append(other.open("rb"))
        assert held[-1].fileno() == number
        return wrapper

    with serving(app) as server, connect(server) as connection:
        answer = connection.request()
    held[0].close()
    assert (answer.status, answer.body) == (500, b"")


def test_a_file_is_sent_over_a_unix_socket(large: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"socket_family": socket.AF_UNIX, "socket_file": str(tmp_path / "s")}

    with (
        serving(wrapping(lambda: large.open("rb")), **where) as server,
        connect(server) as connection,
    ):
        assert connection.request().body == large.read_bytes()
        connection.assert_open()


def test_http_10_gets_a_file_with_its_length(large: Path) -> None:
    with serving(wrapping(lambda: large.open("rb"))) as server, connect(server) as connection:
        answer = connection.request(version="HTTP/1.0")

    assert answer.one("Content-Length") == str(LARGE)
    assert answer.body == large.read_bytes()


def test_requests_behind_a_file_are_answered_in_order(large: Path) -> None:
    with serving(wrapping(lambda: large.open("rb"))) as server:
        connection = Connection((server.host, server.port))
        connection.socket.settimeout(DEADLINE)
        with connection:
            connection.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
            for _ in range(3):
                assert connection.answer().body == large.read_bytes()
