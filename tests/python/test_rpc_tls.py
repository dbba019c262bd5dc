"""TLS to a broker: files that cannot be used, and what is left to OpenSSL."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from osloxide import _native

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

CERTIFICATES = Path(__file__).parents[1] / "certificates"
CA = str(CERTIFICATES / "ca.crt")

LISTEN = """
import json, sys, warnings
warnings.simplefilter("ignore")
from osloxide.activation import import_hook
import_hook.install()
import oslo_messaging
from oslo_config import cfg

conf = cfg.CONF
conf([], project="test", default_config_files=[])
transport = oslo_messaging.get_rpc_transport(conf, url="rabbit://u:p@127.0.0.1:1//")
for name, value in json.loads(sys.argv[1]).items():
    conf.set_override(name, value, "oslo_messaging_rabbit")
target = oslo_messaging.Target(topic="t", server="s")
server = oslo_messaging.get_rpc_server(transport, target, [], executor="threading")
try:
    server.start()
except oslo_messaging.exceptions.ConfigurationError as error:
    print(error)
"""


def start_with(environment: dict[str, str] | None = None, **options: Any) -> str:
    """The error of a server that starts with *options*; it would connect for ever without one."""
    done = subprocess.run(
        [sys.executable, "-c", LISTEN, json.dumps({"ssl": True, **options})],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("option", "others", "file", "reason"),
    [
        ("ssl_ca_file", {}, "missing.crt", "No such file"),
        ("ssl_ca_file", {}, "server.key", "PEM"),
        ("ssl_cert_file", {}, "missing.crt", "No such file"),
        ("ssl_cert_file", {}, "client.crt", "PEM"),
        ("ssl_key_file", {"ssl_cert_file": "client.crt"}, "missing.key", "No such file"),
        ("ssl_key_file", {"ssl_cert_file": "client.crt"}, "server.key", "mismatch"),
        ("ssl_key_file", {}, "client.key", "without ssl_cert_file"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_at_start_that_names_the_option(
    option: str, others: dict[str, str], file: str, reason: str
) -> None:
    options = {name: str(CERTIFICATES / value) for name, value in {**others, option: file}.items()}

    error = start_with(**options)

    assert error.startswith(f"[oslo_messaging_rabbit] {option} = {options[option]!r}")
    assert reason.lower() in error.lower()


@pytest.mark.parametrize("is_native", ["0", "1"])
def test_a_pipe_that_nothing_writes_to_is_such_an_error_too(tmp_path: Path, is_native: str) -> None:
    pipe = tmp_path / "ca.crt"
    os.mkfifo(pipe)

    error = start_with({"OSLOXIDE_NATIVE_RPC": is_native}, ssl_ca_file=str(pipe))

    assert error.startswith(f"[oslo_messaging_rabbit] ssl_ca_file = {str(pipe)!r}: is a pipe")


def test_a_pipe_gives_its_bytes_and_a_file_without_end_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "ca.crt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[b"x" * 100_000])
    writer.start()
    try:
        assert _native.read_file(pipe) == b"x" * 100_000
    finally:
        writer.join()
    with pytest.raises(OSError, match="is longer than 16 MiB") as refused:
        _native.read_file("/dev/zero")
    assert (refused.value.errno, refused.value.filename) == (errno.EFBIG, "/dev/zero")


Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A broker's end of TLS, by OpenSSL: it reads AMQP's first words and sends them back."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def run(certificate: Path, key: Path, maximum: ssl.TLSVersion | None = None) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if maximum is not None:
            context.maximum_version = maximum
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(plain, server_side=True) as connection:
                        connection.sendall(connection.recv(8))
                        connection.recv(1)
                except OSError:
                    plain.close()

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield run
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def connect(port: int, **options: Any) -> tuple[bytes, bool]:
    """What comes back over TLS with *options*, and whether it was made natively."""
    from amqp import transport

    from osloxide.messaging.rabbit import tls

    class Own(transport.SSLTransport):  # type: ignore[misc]
        pass

    tls.amend_transport(SimpleNamespace(SSLTransport=Own))  # type: ignore[arg-type]
    connection = Own(f"127.0.0.1:{port}", connect_timeout=30, ssl=options)
    connection.connect()
    try:
        return connection._read(8), isinstance(connection.sock, tls.TlsSocket)
    finally:
        connection.close()


GREETING = b"AMQP\x00\x00\x09\x01"


@pytest.mark.parametrize("maximum", [None, ssl.TLSVersion.TLSv1_2])
def test_a_verified_connection_is_native(serve: Serve, maximum: ssl.TLSVersion | None) -> None:
    port = serve(CERTIFICATES / "server.crt", CERTIFICATES / "server.key", maximum)

    answer = connect(port, ca_certs=CA, cert_reqs=ssl.CERT_REQUIRED, server_hostname="localhost")

    assert answer == (GREETING, True)


def test_what_only_openssl_takes_is_left_to_it(serve: Serve, tmp_path: Path) -> None:
    certificate, key = tmp_path / "own.crt", tmp_path / "own.key"
    # An authority that is the broker's own certificate, as `openssl req -x509` makes it.
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = serve(certificate, key)

    answer = connect(
        port, ca_certs=str(certificate), cert_reqs=ssl.CERT_REQUIRED, server_hostname="localhost"
    )

    assert answer == (GREETING, False)


def test_what_openssl_refuses_is_refused(serve: Serve) -> None:
    port = serve(CERTIFICATES / "expired.crt", CERTIFICATES / "expired.key")

    with pytest.raises(ssl.SSLCertVerificationError):
        connect(port, ca_certs=CA, cert_reqs=ssl.CERT_REQUIRED, server_hostname="localhost")


def test_options_that_are_openssls_are_left_to_it(serve: Serve) -> None:
    port = serve(CERTIFICATES / "server.crt", CERTIFICATES / "server.key")

    answer = connect(port, ca_certs=CA, cert_reqs=ssl.CERT_REQUIRED, ciphers="DEFAULT")

    assert answer == (GREETING, False)
