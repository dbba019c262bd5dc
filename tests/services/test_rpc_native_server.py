"""RPC servers without kombu, on a real RabbitMQ: what kombu's do, and what faults make of it.

All other tests of RPC over RabbitMQ run on such servers and clients with OSLOXIDE_SUBJECT=native.
"""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import amqp
import pytest
from waiting import wait_until

from services.conftest import Figure, Start, running
from services.infra import PASSWORD, USER, Broker
from services.rpc import (
    TOPIC,
    Senders,
    became_of_calls,
    check_that_each_caller_lost_one_at_most,
    client_environment,
    runs,
    start_rpc_service,
)
from services.subject import APPS, IS_STOCK
from services.test_rpc_native_client import OUTCOMES, outcomes, own_client, products

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(IS_STOCK, reason="stock has no such server"),
]

SERVERS = 200


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """One that may be killed, and keeps no other test's queues."""
    yield from running(Broker)


def queues(broker: Broker) -> list[str]:
    """The names of the fanout queues of the test's servers."""
    listed = broker.control("list_queues", "name").splitlines()
    return [line.strip() for line in listed if "_fanout_" in line]


def test_every_kind_of_request_is_served_as_by_kombu(
    start: Start, own_broker: Broker, trace: Path, figure: Figure
) -> None:
    service = start_rpc_service(start, own_broker.url, trace, is_native=True)
    served = products(own_broker)
    # A child's calls are not compared: by kombu it shares its parent's socket.
    alike = [word for name in OUTCOMES if name != "child" for word in ("--only", name)]
    with (
        own_client(own_broker.url, *alike, is_native=False) as by_kombu,
        own_client(own_broker.url) as client,
    ):
        by_kombu.end()
        client.end()
    owned = queues(own_broker)
    service.stop()

    assert served == ["osloxide"], "kombu connects nothing"
    assert outcomes(client.results) == OUTCOMES
    assert outcomes(by_kombu.results) | {"child": OUTCOMES["child"]} == OUTCOMES
    assert runs(trace)[3] == 2, "each cast ran once"
    assert runs(trace)[4] == 2, "each fanout ran once"
    assert len(owned) == 1
    assert queues(own_broker) == [], "a server that ends deletes its fanout queue"
    figure(f"monitored call: {by_kombu.results['seconds of monitored']:.1f} s by a kombu client")


def test_sigterm_to_one_of_two_loses_and_doubles_no_cast(
    start: Start, broker: Broker, trace: Path
) -> None:
    services = [
        start_rpc_service(start, broker.url, trace, threads=2, is_native=True) for _ in range(2)
    ]
    senders = Senders(broker.url, "cast", 4, [], is_native=True)
    try:
        senders.wait_more(300)
        services[0].signal(signal.SIGTERM)
        senders.wait_more(100)
        report = senders.stop()
    finally:
        senders.kill()
    sent = set(report["sent"])
    wait_until(lambda: set(runs(trace)) >= sent, "what was sent has run", 90)
    for service in services:
        service.stop()

    assert report["failures"] == {}
    assert set(runs(trace).values()) == {1}


def test_closed_connections_lose_and_double_no_completed_call(
    start: Start, own_broker: Broker, trace: Path, figure: Figure
) -> None:
    callers = 16
    service = start_rpc_service(start, own_broker.url, trace, is_native=True)
    senders = Senders(own_broker.url, "call", callers, [], is_native=True)
    try:
        report = senders.through(own_broker.close_connections, 3, more=200)
    finally:
        senders.kill()
    service.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"connections closed three times, {callers} callers, both ends without kombu: {words}")
    assert report["failures"] == {}
    # A request whose confirm is lost is sent again: one for each caller and cut.
    assert len(doubled) <= 3 * callers


def test_calls_go_on_after_a_crash_of_the_broker(
    start: Start, own_broker: Broker, trace: Path, figure: Figure
) -> None:
    callers = 16
    service = start_rpc_service(start, own_broker.url, trace, is_native=True)
    senders = Senders(own_broker.url, "call", callers, [], is_native=True)
    try:
        senders.wait_more(100)
        own_broker.kill_server()
        own_broker.start_server()
        senders.wait_more(100)
        report = senders.stop()
    finally:
        senders.kill()
    service.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"crash of the broker, {callers} callers, both ends without kombu: {words}")
    check_that_each_caller_lost_one_at_most(report, callers)
    assert len(doubled) <= callers


def test_notifications_come_in_batches_and_again_when_they_are_given_back(
    own_broker: Broker,
) -> None:
    count = 40
    listener = subprocess.Popen(
        [sys.executable, str(APPS / "rpc_notified.py"), own_broker.url, str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=client_environment(is_native=True),
    )  # fmt: skip
    try:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "SENT\n"
        own_broker.close_connections()
        text, errors = listener.communicate("go on\n", timeout=150)
    finally:
        listener.kill()
        listener.communicate()
    assert listener.returncode == 0, errors
    seen = json.loads(text.splitlines()[-1])

    assert seen["kind"] == "NativeNotificationListener"
    numbers = {str(number) for number in range(2 * count)}
    assert set(seen["taken"]) == numbers
    assert set(seen["returned"]) == numbers
    assert {int(size) for size in seen["sizes"]} <= set(range(1, 6))
    listed = own_broker.control("list_queues", "name", "messages").splitlines()
    left = [line.split()[1] for line in listed if line.startswith("osloxide-notified.info")]
    assert left == ["0"], "what was taken is acknowledged"


def test_200_servers_of_a_process_share_two_connections(broker: Broker, figure: Figure) -> None:
    done = subprocess.run(
        [sys.executable, str(APPS / "rpc_many.py"), broker.url, str(SERVERS)],
        capture_output=True, text=True, timeout=240, check=False,
        env=client_environment(is_native=True),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])

    figure(f"{SERVERS} servers: {seen['called']['descriptors']} descriptors, "
           f"{seen['called']['sockets']} connections; {seen}")  # fmt: skip
    assert seen["called"]["sockets"] <= 3, "of servers, their replies, and the client"
    assert seen["called"]["descriptors"] <= 50
    assert seen["last"] == list(range(10))
    assert seen["ended"]["sockets"] == 0


PLAIN = b"\x10application/json\5utf-8"


def odd_headers() -> dict[str, bytes]:
    """Flags and properties of content headers that a publisher may write, by what is odd."""

    def table(fields: bytes) -> bytes:
        return struct.pack(">I", len(fields)) + fields

    def headers(fields: bytes) -> bytes:
        return struct.pack(">H", 0xE000) + PLAIN + table(fields)

    values = {
        b"t": b"\1", b"b": b"\x80", b"B": b"\xff", b"s": b"\x80\0", b"u": b"\xff\xff",
        b"U": b"\x80\0", b"I": b"\x80\0\0\0", b"i": b"\xff" * 4, b"l": b"\x80" + b"\0" * 7,
        b"L": b"\xff" * 8, b"f": b"\x3f\x80\0\0", b"d": b"\x3f\xf0" + b"\0" * 6,
        b"D": b"\xff" * 5, b"S": table(b"\xff\xfe"), b"A": table(b"A" + table(b"V")),
        b"T": b"\x7f" + b"\xff" * 7, b"F": table(b"\1\xffF" + table(b"\1aV")), b"V": b"",
        b"x": table(b"\xff\xfe"),
    }  # fmt: skip
    nested = b"\1aV"
    for _ in range(2000):
        nested = b"\1aF" + table(nested)
    odd = {
        kind.decode(): headers(b"\2\xff" + kind + kind + value) for kind, value in values.items()
    }
    return odd | {
        "nested": headers(nested),
        "content": struct.pack(">H", 0xC000) + b"\2\xff/\1\xff",
        "message_id": struct.pack(">H", 0xC080) + PLAIN + b"\1\xff",
        "strings": struct.pack(">H", 0xC628) + PLAIN + b"\1\xff" * 4,
    }


def publish(broker: Broker, number: int, header: bytes, exchange: str, key: str) -> bool:
    """Send a cast of :mod:`services.apps.rpc_service` with *header*; whether the broker has it."""

    class Odd(amqp.Message):  # type: ignore[misc]
        def _serialize_properties(self) -> bytes:
            return header

    message = {"method": "work", "args": {"number": number, "seconds": 0}, "version": "1.0"}
    body = json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)})
    connection = amqp.Connection(
        f"127.0.0.1:{broker.port}", USER, PASSWORD, confirm_publish=True, connect_timeout=20
    )
    connection.connect()
    try:
        connection.channel().basic_publish(Odd(body), exchange, key)
    except (amqp.AMQPError, UnicodeDecodeError):  # its words hold what it refuses
        return False
    else:
        return True
    finally:
        with contextlib.suppress(OSError, amqp.AMQPError):
            connection.close()


@pytest.mark.parametrize("is_native", [True, False])
def test_a_message_with_odd_properties_is_served_or_rejected_and_harms_no_other(
    start: Start, own_broker: Broker, trace: Path, figure: Figure, *, is_native: bool
) -> None:
    service = start_rpc_service(start, own_broker.url, trace, is_native=is_native)
    plain = struct.pack(">H", 0xC000) + PLAIN
    fanout = f"{TOPIC}_fanout"
    taken = {
        name: publish(own_broker, number, header, "", TOPIC)
        for number, (name, header) in enumerate(odd_headers().items())
    }
    taken["routing key"] = publish(own_broker, 90, plain, fanout, "\udcff")
    assert publish(own_broker, 99, plain, "", TOPIC)

    wait_until(lambda: 99 in runs(trace), "what comes after them is served", 45)

    wait_until(lambda: 90 in runs(trace), "a routing key may be anything", 45)
    listed = own_broker.control("-q", "list_queues", "name", "messages")
    assert all(line.split()[1] == "0" for line in listed.splitlines() if TOPIC in line), listed
    service.stop()
    text = service.text()
    refused = text.count("properties cannot be read is rejected")
    skipped = text.count("Failed to process message ... skipping it.")
    not_taken = [name for name, is_taken in taken.items() if not is_taken]
    ran = len(runs(trace))
    figure(f"{ran} run, {refused} and {skipped} rejected; RabbitMQ does not take {not_taken}")
    assert max(runs(trace).values()) == 1
    assert ran + refused + skipped == sum(taken.values()) + 1
    assert skipped == 1, "what is in a body of no known type is not known"
    assert (refused == 0) == is_native, "RabbitMQ takes nothing that is not read natively"
    assert "unreachable" not in text
