"""A broker that no longer permits a queue: one error that says what to set.

The broker is a socket that speaks as much of AMQP 0-9-1 as a declaration needs, and refuses it as
RabbitMQ does: it closes the connection with 541.
"""

from __future__ import annotations

import importlib.util
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from _children import told_by_python

from osloxide.messaging.rabbit.forbidden_queues import explanation

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

TEXT = (
    "INTERNAL_ERROR - Feature `{}` is deprecated.\n"
    "Its use is not permitted per the configuration (overriding the default, which is permitted):\n"
)

DECLARE_QUEUE, CONNECTION_CLOSE_OK = (50, 10), (10, 51)
ANSWERS = {
    (10, 11): (10, 30, struct.pack(">HIH", 2047, 131072, 0)),  # start-ok: tune
    (10, 40): (10, 41, b"\0"),  # open: open-ok
    (20, 10): (20, 11, struct.pack(">I", 0)),  # channel.open: open-ok
    (20, 40): (20, 41, b""),  # channel.close: close-ok
    (40, 10): (40, 11, b""),  # exchange.declare: declare-ok
    (60, 10): (60, 11, b""),  # basic.qos: qos-ok
    (85, 10): (85, 11, b""),  # confirm.select: select-ok
}


def method(channel: int, of_class: int, number: int, arguments: bytes) -> bytes:
    payload = struct.pack(">HH", of_class, number) + arguments
    return struct.pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"


class Refusing:
    """A broker that takes no queue."""

    def __init__(self, text: str) -> None:
        self.declared = 0
        self._text = text.encode()[:255]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as stream:
            stream.read(8)
            mechanisms, locales = b"AMQPLAIN PLAIN", b"en_US"
            peer.sendall(
                method(
                    0, 10, 10,
                    b"\0\x09" + struct.pack(">I", 0)
                    + struct.pack(">I", len(mechanisms)) + mechanisms
                    + struct.pack(">I", len(locales)) + locales,
                )
            )  # fmt: skip
            while len(head := stream.read(7)) == 7:
                kind, channel, size = struct.unpack(">BHI", head)
                payload = stream.read(size + 1)
                if kind != 1:
                    continue
                asked = struct.unpack(">HH", payload[:4])
                if asked == DECLARE_QUEUE:
                    self.declared += 1
                    text = struct.pack(">HB", 541, len(self._text)) + self._text
                    peer.sendall(method(0, 10, 50, text + struct.pack(">HH", *DECLARE_QUEUE)))
                elif asked == CONNECTION_CLOSE_OK:
                    return
                elif asked in ANSWERS:
                    peer.sendall(method(channel, *ANSWERS[asked]))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    broker = Refusing(TEXT.format("transient_nonexcl_queues"))
    yield broker
    broker.close()


SETUP = """
import json, sys, warnings
warnings.simplefilter("ignore")
from osloxide.activation import import_hook
import_hook.install()
import oslo_messaging
from oslo_config import cfg
conf = cfg.CONF
conf([], project="test", default_config_files=[])
url = f"rabbit://u:p@127.0.0.1:{sys.argv[1]}//"
transport = oslo_messaging.get_rpc_transport(conf, url=url)
target = oslo_messaging.Target(topic="t", server="s")
"""


def run(script: str, broker: Refusing) -> Any:
    return told_by_python(SETUP + script, str(broker.port))


def test_a_server_that_may_not_have_its_queue_says_what_to_set(refusing: Refusing) -> None:
    error = run(
        """
server = oslo_messaging.get_rpc_server(transport, target, [], executor="threading")
try:
    server.start()
except Exception as error:
    print(json.dumps(str(error)))
""",
        refusing,
    )

    assert "rabbit_transient_quorum_queue = true" in error
    assert "deprecated_features.permit.transient_nonexcl_queues = true" in error
    assert "'t'" in error
    assert refusing.declared == 1


def test_a_caller_that_may_not_have_its_reply_queue_is_told_at_once(refusing: Refusing) -> None:
    error = run(
        """
try:
    oslo_messaging.get_rpc_client(transport, target, timeout=100).call({}, "anything")
except Exception as error:
    print(json.dumps(str(error)))
""",
        refusing,
    )

    assert "rabbit_transient_quorum_queue = true" in error
    assert refusing.declared == 1


def test_a_notifier_that_may_not_have_its_queue_is_told_at_once(refusing: Refusing) -> None:
    error = run(
        """
driver = transport._driver
try:
    driver.send_notification(oslo_messaging.Target(topic="n", exchange="x"), {}, {}, 2.0)
except Exception as error:
    print(json.dumps(str(error)))
""",
        refusing,
    )

    assert "rabbit_transient_quorum_queue = true" in error


class Answer(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@pytest.mark.parametrize(
    ("feature", "remedy"),
    [
        ("transient_nonexcl_queues", "rabbit_transient_quorum_queue"),
        ("classic_queue_mirroring", "instead of rabbit_ha_queues"),
        ("one_of_tomorrow", "deprecated_features.permit.one_of_tomorrow"),
    ],
)
def test_each_deprecated_feature_is_named_with_its_remedy(feature: str, remedy: str) -> None:
    assert remedy in str(explanation("q", Answer(541, TEXT.format(feature))))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (541, "INTERNAL_ERROR"),
        (541, "INTERNAL_ERROR - Cannot declare a queue 'queue' in vhost '/': nodedown"),
        (404, TEXT.format("transient_nonexcl_queues")),
    ],
)
def test_other_errors_are_left_as_they_are(code: int, text: str) -> None:
    assert explanation("q", Answer(code, text)) is None


def test_calls_that_are_refused_leave_no_descriptor(refusing: Refusing) -> None:
    before, after = run(
        """
import gc, os
client = oslo_messaging.get_rpc_client(transport, target, timeout=100)
def descriptors():
    for _ in range(4):
        try:
            client.call({}, "anything")
        except oslo_messaging.MessageDeliveryFailure:
            pass
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
print(json.dumps([descriptors(), descriptors()]))
""",
        refusing,
    )

    assert after <= before
