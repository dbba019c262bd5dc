"""TLS as the options of group ssl say, and certificates that are renewed without a restart."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oslo_service import _options
from support.raw_http import DEADLINE, Connection, Incomplete, configuration, serving

from osloxide import wsgi

openssl = shutil.which("openssl")
pytestmark = pytest.mark.skipif(openssl is None, reason="needs the openssl command")


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [f"{environ['wsgi.url_scheme']} {environ.get('HTTPS')}".encode()]


def certify(directory: Path, name: str) -> tuple[str, str]:
    """A new self-signed certificate for localhost and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN={name} -addext subjectAltName=DNS:localhost"
    )
    subprocess.run(
        [*command.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    return str(certificate), str(key)


class TLSConnection(Connection):
    """A connection that encrypts and trusts anybody."""

    def __init__(self, address: tuple[str, int], **options: Any) -> None:
        super().__init__(address)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for name, value in options.items():
            setattr(context, name, value)
        self.socket: ssl.SSLSocket = context.wrap_socket(self.socket)

    @property
    def certificate(self) -> str:
        encoded = self.socket.getpeercert(binary_form=True)
        assert encoded is not None
        return ssl.DER_cert_to_PEM_cert(encoded)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    servers: list[wsgi.Server] = []

    def make(**ssl_options: str) -> wsgi.Server:
        conf = configuration()
        conf.register_opts(_options.ssl_opts, "ssl")
        for name, value in ssl_options.items():
            conf.set_override(name, value, "ssl")
        server = wsgi.Server(conf, "test", app, host="127.0.0.1", use_ssl=True)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()
        assert all(engine.wait(DEADLINE) for engine in server._engines)
        server.socket.close()
        assert server.dup_socket is not None
        server.dup_socket.close()


def address(server: wsgi.Server) -> tuple[str, int]:
    return server.host, server.port


def test_the_application_knows_that_its_client_came_encrypted(made: Any, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    server = made(cert_file=certificate, key_file=key)

    with TLSConnection(address(server)) as connection:
        assert connection.request().body == b"https on"
        assert connection.request("POST", "/", {}, b"x" * 300_000).status == 200


def test_a_file_is_sent_encrypted(tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_001))

    def files(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    conf = configuration()
    conf.register_opts(_options.ssl_opts, "ssl")
    conf.set_override("cert_file", certificate, "ssl")
    conf.set_override("key_file", key, "ssl")
    with (
        serving(files, use_ssl=True, conf=conf) as server,
        TLSConnection(address(server)) as connection,
    ):
        for _ in range(2):
            answer = connection.request()
            assert answer.one("Content-Length") == "3000001"
            assert answer.body == path.read_bytes()


def test_a_renewed_certificate_is_used_after_reset_and_nobody_is_dropped(
    made: Any, tmp_path: Path
) -> None:
    certificate, key = certify(tmp_path, "first")
    first = Path(certificate).read_text()
    server = made(cert_file=certificate, key_file=key)
    with TLSConnection(address(server)) as old:
        assert old.request().status == 200
        certify(tmp_path, "second")
        server.reset()

        with TLSConnection(address(server)) as new:
            assert new.request().status == 200
            assert new.certificate.split() == Path(certificate).read_text().split()
        assert old.certificate.split() == first.split()
        assert old.request().status == 200


def test_a_broken_certificate_is_reported_and_the_earlier_one_kept(
    made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = certify(tmp_path, "first")
    first = Path(certificate).read_text()
    server = made(cert_file=certificate, key_file=key)
    Path(certificate).write_text("not a certificate")
    server.reset()

    assert "cert_file" in caplog.text
    with TLSConnection(address(server)) as connection:
        assert connection.request().status == 200
        assert connection.certificate.split() == first.split()


def test_a_key_of_another_certificate_is_named_at_construction(made: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, _ = certify(tmp_path, "first")
    _, key = certify(tmp_path / "other", "second")

    with pytest.raises(ValueError, match="key_file"):
        made(cert_file=certificate, key_file=key)


def is_answered(where: tuple[str, int]) -> bool:
    try:
        with TLSConnection(where) as connection:
            return connection.request().status == 200
    except (ssl.SSLError, ConnectionError, Incomplete):
        return False


def test_a_client_without_the_demanded_certificate_is_refused(made: Any, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    server = made(cert_file=certificate, key_file=key, ca_file=certificate)

    assert not is_answered(address(server))
    with Connection(address(server)) as plain:
        plain.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.rest().startswith(b"HTTP/1.1 200")


def test_a_handshake_that_stalls_holds_up_nobody(made: Any, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    server = made(cert_file=certificate, key_file=key)
    stalled = [socket.create_connection(address(server)) for _ in range(200)]
    try:
        with TLSConnection(address(server)) as connection:
            assert connection.request().status == 200
    finally:
        for client in stalled:
            client.close()


def handshake(where: tuple[str, int], **options: Any) -> str | None:
    """The protocol that the server chose for a client with these *options*."""
    with TLSConnection(where, **options) as connection:
        assert connection.request().status == 200
        return connection.socket.version()


def test_versions_before_tls_12_are_refused(made: Any, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    where = address(made(cert_file=certificate, key_file=key))

    # A ClientHello of TLS 1.1: SSL's own client does not make one any more.
    hello = bytes(2) + bytes(30) + b"\0" + b"\0\x02\xc0\x13" + b"\x01\0" + b"\0\0"
    hello = b"\x03\x02" + hello
    message = b"\x01" + len(hello).to_bytes(3, "big") + hello
    with Connection(where) as old:
        old.send(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
        answer = old.rest()
    # One alert, fatal: handshake_failure or protocol_version, whichever is noticed first.
    assert answer[:6] == b"\x15\x03\x03\0\x02\x02"
    assert answer[6:] in (b"\x28", b"\x46")
    assert handshake(where, maximum_version=ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert handshake(where) == "TLSv1.3"


def test_one_version_alone_refuses_the_other(made: Any, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    newest = address(made(cert_file=certificate, key_file=key, version="TLSv1_3"))
    older = address(made(cert_file=certificate, key_file=key, version="TLSv1_2"))

    assert handshake(newest) == "TLSv1.3"
    assert handshake(older) == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        handshake(newest, maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        handshake(older, minimum_version=ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "SSLv3", "2"])
def test_a_version_that_cannot_be_honoured_is_refused_at_construction(
    made: Any, tmp_path: Path, version: str
) -> None:
    certificate, key = certify(tmp_path, "first")

    with pytest.raises(ValueError, match=f"version.*{version}"):
        made(cert_file=certificate, key_file=key, version=version)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["h2", "http/1.1"], "http/1.1"),
        (["http/1.1"], "http/1.1"),
        (["http/1.0"], "http/1.0"),
        (["http/1.0", "http/1.1"], "http/1.1"),
        ([], None),
    ],
)
def test_the_newest_protocol_that_both_speak_is_agreed_on(
    made: Any, tmp_path: Path, offered: list[str], chosen: str | None
) -> None:
    certificate, key = certify(tmp_path, "first")
    where = address(made(cert_file=certificate, key_file=key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if offered:
        context.set_alpn_protocols(offered)

    with (
        socket.create_connection(where, DEADLINE) as plain,
        context.wrap_socket(plain) as client,
    ):
        assert client.selected_alpn_protocol() == chosen
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_speaks_http_2_alone_is_told_so(made: Any, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    where = address(made(cert_file=certificate, key_file=key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])

    with (
        socket.create_connection(where, DEADLINE) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"),
    ):
        context.wrap_socket(plain)


def test_a_stop_is_announced_to_idle_clients(made: Any, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "first")
    server = made(cert_file=certificate, key_file=key)
    with TLSConnection(address(server)) as connection:
        assert connection.request().status == 200
        server.stop()

        # Without the notice this raises: the end could have been an attacker's.
        connection.socket.suppress_ragged_eofs = False
        assert connection.socket.recv(1) == b""
