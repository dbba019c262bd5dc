"""The frames that we read and write ourselves, beside py-amqp, which knows them all."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.basic_message import Message
from amqp.method_framing import frame_handler, frame_writer
from amqp.serialization import dumps, loads
from hypothesis import given
from hypothesis import strategies as st
from support.properties import checked

from osloxide import _native

CHANNEL = 7
DELIVER, PUBLISH, ACK, NACK = (60, 60), (60, 40), (60, 80), (60, 120)
PROPERTIES = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "application_headers": {},
    "delivery_mode": 2,
    "priority": 0,
}
FRAME_MAX = 131_072


def written(
    method: tuple[int, int], arguments: bytes, content: Message | None, frame_max: int = FRAME_MAX
) -> bytes:
    """The bytes that py-amqp makes of a method."""
    pieces: list[bytes] = []
    connection = SimpleNamespace(frame_max=frame_max, bytes_sent=0)
    transport = SimpleNamespace(write=lambda data: pieces.append(bytes(data)))
    frame_writer(connection, transport)(1, CHANNEL, method, arguments, content)
    return b"".join(pieces)


def delivery(tag: int, body: str, frame_max: int = FRAME_MAX, **properties: Any) -> bytes:
    arguments = dumps("sLbss", ("consumer", tag, True, "exchange", "topic"))
    message = Message(body, **(PROPERTIES | properties))
    # py-amqp before 5.4 writes no header for an empty body once a message needs several frames,
    # which no broker does. The frames of an empty body are the same for every frame_max.
    return written(DELIVER, arguments, message, frame_max if body else FRAME_MAX)


def read(data: bytes) -> list[tuple[tuple[int, int], bytes, Message | None]]:
    """What py-amqp makes of *data*."""
    found: list[tuple[tuple[int, int], bytes, Message | None]] = []
    on_frame: Callable[[tuple[int, int, bytes]], bool] = frame_handler(
        SimpleNamespace(bytes_recv=0),
        lambda channel, method, payload, content: found.append((method, payload, content)),
        content_methods=frozenset([PUBLISH]),
    )
    while data:
        kind, channel, size = struct.unpack_from(">BHI", data)
        assert data[7 + size] == 0xCE
        assert channel == CHANNEL
        on_frame((kind, channel, data[7 : 7 + size]))
        data = data[8 + size :]
    return found


@checked
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=300))),
    st.sampled_from([64, 100, FRAME_MAX]),
)
def test_what_py_amqp_delivers_is_found(messages: list[tuple[int, str]], frame_max: int) -> None:
    data = b"".join(delivery(tag, body, frame_max) for tag, body in messages)

    found, used, frames, is_foreign = _native.amqp_deliveries(data, CHANNEL)

    assert found == [(tag, True, body) for tag, body in messages]
    assert (used, is_foreign) == (len(data), False)
    assert frames >= 2 * len(messages)


@pytest.mark.parametrize(
    "properties",
    [
        {"content_type": "application/x-python-serialize"},
        {"content_encoding": "latin-1"},
        {"application_headers": {"compression": "application/x-gzip"}},
        {"application_headers": {"x-stream-offset": 5}},
    ],
)
def test_what_needs_more_than_a_look_is_left_to_py_amqp(properties: dict[str, Any]) -> None:
    usual, unusual = delivery(1, "{}"), delivery(2, "{}", **properties)

    found, used, _, is_foreign = _native.amqp_deliveries(usual + unusual + usual, CHANNEL)

    assert [tag for tag, _, _ in found] == [1]
    assert (used, is_foreign) == (len(usual), True)


@checked
@given(
    st.text(max_size=80),
    st.booleans(),
    st.text(max_size=300),
    st.sampled_from([0, 64, FRAME_MAX]),
)
def test_py_amqp_reads_what_is_published(
    queue: str, mandatory: bool, text: str, frame_max: int
) -> None:
    if len(queue.encode()) > 255:
        return
    body = json.dumps(text)

    data = _native.amqp_publish(CHANNEL, queue, "42", mandatory, body, frame_max)

    ((method, payload, message),) = read(data)
    assert method == PUBLISH
    reserved, exchange, key, is_mandatory, is_immediate = loads("Bssbb", payload, 4)[0]
    assert (reserved, exchange, key) == (0, "", queue)
    assert (bool(is_mandatory), bool(is_immediate)) == (mandatory, False)
    assert message is not None
    assert message.properties == PROPERTIES | {"message_id": "42"}
    assert message.body == body.encode()


def test_an_acknowledgement_is_py_amqps() -> None:
    assert _native.amqp_ack(CHANNEL, 2**40) == written(ACK, dumps("Lb", (2**40, False)), None)


def test_confirms_are_found_up_to_the_first_refusal() -> None:
    data = b"".join(
        written(method, dumps("Lb", arguments), None)
        for method, arguments in [(ACK, (1, False)), (ACK, (9, True)), (NACK, (10, False))]
    )

    found, used, frames, is_foreign = _native.amqp_confirms(data, CHANNEL)

    assert found == [(1, False), (9, True)]
    assert (used, frames, is_foreign) == (2 * 21, 2, True)


def test_a_name_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="256 bytes; AMQP allows 255"):
        _native.amqp_publish(CHANNEL, "q" * 256, "1", True, "{}", FRAME_MAX)
