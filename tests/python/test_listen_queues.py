"""Queues of listening sockets, as /proc tells them; those of services are in test_insight.py."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from osloxide.cli import listen_queues


def test_addresses_are_written_as_urls_have_them() -> None:
    with ExitStack() as stack:
        made = {stack.enter_context(socket.create_server(("127.0.0.1", 0)))}
        made.add(stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0osloxide-{os.getpid()}")
        abstract.listen()
        ports = {it.family: it.getsockname()[1] for it in made}

        found = {queue.address for queue in listen_queues.of(os.getpid(), [])}

    assert f"127.0.0.1:{ports[socket.AF_INET]}" in found
    assert f"[::1]:{ports[socket.AF_INET6]}" in found
    assert f"@osloxide-{os.getpid()}" in found


def test_workers_with_sockets_of_their_own_are_counted_together() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        where = first.getsockname()
        stack.enter_context(socket.create_server(where, reuse_port=True))
        for _ in range(5):
            stack.enter_context(socket.create_connection(where))
        address = f"127.0.0.1:{where[1]}"

        # No process has the number 0.
        found = {it.address: it.waiting for it in listen_queues.of(0, [os.getpid()])}

    assert found[address] == 5


def test_a_process_that_is_not_there_has_no_queue() -> None:
    assert listen_queues.of(0, [0]) == ()
