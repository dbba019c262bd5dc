"""Handshakes that are under way when a server reloads are brought to their end.

How long each phase is given in a drain: src/server/reactor/timing.rs, with chosen instants.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certify import OPENSSL, Pair, self_signed
from support.raw_http import DEADLINE
from support.serving import Running, starter
from waiting import wait_until

Address = tuple[str, int]
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Greeting:
    """A client of TLS that has begun its handshake, and heard of the server's part of it."""

    def __init__(self, address: Address) -> None:
        self._plain = socket.create_connection(address, DEADLINE)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._plain.sendall(self._outgoing.read())
        self._incoming.write(self._plain.recv(65536))

    def ask(self) -> tuple[bytes, bytes]:
        """End the handshake and ask: the certificate (DER) and the answer."""
        self._until_done(self._tls.do_handshake)
        self._tls.write(REQUEST)
        answer = b""
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while piece := self._until_done(lambda: self._tls.read(65536)):
                answer += piece
        return self._tls.getpeercert(binary_form=True) or b"", answer

    def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                done = step()
                self._plain.sendall(self._outgoing.read())
                return done
            except ssl.SSLWantReadError:
                self._plain.sendall(self._outgoing.read())
                if piece := self._plain.recv(65536):
                    self._incoming.write(piece)
                else:
                    self._incoming.write_eof()

    def close(self) -> None:
        self._plain.close()


SITE = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"done"]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as begin:
        yield begin


@pytest.mark.skipif(OPENSSL is None, reason="needs the openssl command")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_handshakes_that_wait_survive_a_new_certificate_and_later_ones_get_it(
    start: Callable[..., Running], tmp_path: Path, workers: str
) -> None:
    def certificate(pair: Pair) -> bytes:
        return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())

    def shown() -> bytes:
        with contextlib.closing(Greeting(address)) as client:
            return client.ask()[0]

    pair, other = self_signed(tmp_path), self_signed(tmp_path, name="renewed")
    old, new = certificate(pair), certificate(other)
    site = start(
        "serve", "mysite", "--bind", "127.0.0.1:0", "--workers", workers,
        "--certfile", str(pair.certificate), "--keyfile", str(pair.key),
    )  # fmt: skip
    address = "127.0.0.1", site.port()
    # Few: the time that they are given passes on a busy machine as well.
    count = 4
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(Greeting(address))) for _ in range(count)]
        shutil.copy(other.certificate, pair.certificate)
        shutil.copy(other.key, pair.key)

        site.process.send_signal(signal.SIGHUP)

        for client in clients:
            shown_then, answer = client.ask()
            assert (shown_then, answer[-4:]) == (old, b"done")
    wait_until(lambda: shown() == new, "the new certificate")
    assert site.stop() == 0, site.log
