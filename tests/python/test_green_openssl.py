"""``eventlet.green.OpenSSL``: connections of pyOpenSSL over green sockets."""

from __future__ import annotations

import pytest
from _children import run_python
from support.tls import CERTIFICATES

PRELUDE = f"""
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
from eventlet.green import socket
from eventlet.green.OpenSSL import SSL

context = SSL.Context(SSL.TLS_METHOD)
context.use_privatekey_file({str(CERTIFICATES / "server.key")!r})
context.use_certificate_file({str(CERTIFICATES / "server.crt")!r})
here, there = socket.socketpair()
server, client = SSL.Connection(context, here), SSL.Connection(SSL.Context(SSL.TLS_METHOD), there)
server.set_accept_state()
client.set_connect_state()
"""


def test_two_greenthreads_talk_by_connections_of_openssl() -> None:
    pytest.importorskip("OpenSSL")
    result = run_python(
        PRELUDE
        + """
def serve():
    data = b""
    while len(data) < 3_000_000:
        data += server.recv(65536)
    server.sendall(data[::-1])
    server.shutdown()

serving = eventlet.spawn(serve)
client.do_handshake()
client.sendall(bytes(range(100)) * 30_000)
back = b""
while len(back) < 3_000_000:
    back += client.recv(65536)
serving.wait()
print(back == (bytes(range(100)) * 30_000)[::-1], isinstance(client, SSL.GreenConnection))
"""
    )
    assert result.stdout == "True True\n", result.stderr


def test_what_is_received_by_every_call_was_decrypted() -> None:
    pytest.importorskip("OpenSSL")
    result = run_python(
        PRELUDE
        + """
serving = eventlet.spawn(lambda: (server.recv(1), server.sendall(b"hello")))
client.do_handshake()
client.sendall(b".")
room = bytearray(100)
count = client.recv_into(room, 2)
print(count, bytes(room[:count]), client.recv(3, socket.MSG_PEEK), client.recv(3))
for call in (client.recvfrom, client.sendmsg):
    try:
        call(b"")
    except NotImplementedError:
        print("refused")
serving.wait()
"""
    )
    assert result.stdout == "2 b'he' b'llo' b'llo'\nrefused\nrefused\n", result.stderr


def test_a_listening_connection_accepts_and_the_client_connects() -> None:
    pytest.importorskip("OpenSSL")
    result = run_python(
        PRELUDE
        + """
listener = SSL.Connection(context, socket.socket())
listener.bind(("127.0.0.1", 0))
listener.listen(5)

def serve():
    connection, _ = listener.accept()
    connection.sendall(connection.recv(100).upper())

serving = eventlet.spawn(serve)
client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), socket.socket())
client.connect(listener.getsockname())
client.sendall(b"hello")
print(client.recv(100))
"""
    )
    assert result.stdout == "b'HELLO'\n", result.stderr


def test_a_timeout_ends_the_wait_for_a_peer_that_is_silent() -> None:
    pytest.importorskip("OpenSSL")
    result = run_python(
        PRELUDE
        + """
try:
    with eventlet.Timeout(0.05):
        client.do_handshake()
except eventlet.Timeout:
    print("timeout of eventlet")
client.settimeout(0.05)
try:
    client.recv(1)
except socket.timeout:
    print("timeout of the socket")
"""
    )
    assert result.stdout == "timeout of eventlet\ntimeout of the socket\n", result.stderr
