"""Messages whose properties py-amqp cannot read, as their bytes arrive: each is rejected."""

from __future__ import annotations

import importlib.util

import pytest
from _children import told_by_python

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

SCRIPT = """
import json, logging, struct, warnings
warnings.simplefilter("ignore")
from types import SimpleNamespace
from osloxide.activation import import_hook
import_hook.install()
from amqp import abstract_channel
from amqp.basic_message import Message
from oslo_messaging._drivers import impl_rabbit

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("osloxide").addHandler(handler)

def table(fields):
    return struct.pack(">I", len(fields)) + fields

def arrives(flags, properties):
    message = Message()
    message.inbound_header(struct.pack(">HHQH", 60, 0, 2, flags) + properties)
    message.inbound_body(b"{}")
    message.delivery_info = {"delivery_tag": 7, "exchange": "x", "routing_key": "k"}
    return message

def nested(depth):
    fields = b"\\x01aV"
    for _ in range(depth):
        fields = b"\\x01aF" + table(fields)
    return table(fields)

DATED = table(b"\\x01aT" + b"\\x7f" * 8)
UNREADABLE = [
    (0x2000, table(b"\\x01aZ\\0")),
    (0x2000, table(b"\\x01aI\\0")),
    (0x2000, DATED),
    (0x2000, nested(5000)),
    (0x0040, b"\\0"),
]

rejected, served = [], []
class Python:
    def __init__(self, raw):
        self.raw = raw
    def reject(self):
        rejected.append(self.raw.delivery_info["delivery_tag"])

consumer = SimpleNamespace(
    queue_name="q",
    rabbit_stream_fanout=False,
    callback=lambda message: served.append(message.body),
    queue=SimpleNamespace(channel=SimpleNamespace(message_to_python=Python)),
)
impl_rabbit.RabbitMessage = lambda message: message.raw
for flags, properties in UNREADABLE:
    impl_rabbit.Consumer._callback(consumer, arrives(flags, properties))

odd = arrives(0x8000 | 0x0080, b"\\x02\\xff/" + b"\\x01\\xfe")
impl_rabbit.Consumer._callback(consumer, odd)
[key], _ = abstract_channel.loads("s", b"\\x01\\xff", 0)
message_id = odd.properties["message_id"]
print(json.dumps([len(UNREADABLE), rejected, len(served), lines, message_id, key]))
"""


def test_what_cannot_be_read_is_rejected_with_a_line_and_what_is_no_utf_8_is_served() -> None:
    count, rejected, served, lines, message_id, key = told_by_python(SCRIPT)

    assert rejected == [7] * count
    assert served == 1
    assert len(lines) == count
    assert all("queue 'q', exchange 'x', routing key 'k', 2 bytes" in line for line in lines)
    assert (message_id, key) == ("\udcfe", "\udcff")
