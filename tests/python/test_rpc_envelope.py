"""Messages as text, beside what oslo.messaging itself makes of them."""

from __future__ import annotations

import copy
import datetime
import decimal
import importlib.util
import json
import uuid
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

MESSAGES: list[dict[str, Any]] = [
    {},
    {"method": "echo", "args": {"x": 'a "quoted" \\ line\n\t\x00\x7f'}},
    {"args": {"é": "\u2028 \U0001f600 \ud800", "nested": [[], {}, [1, 2.5, None, True]]}},
    {"args": {1: float("nan"), "big": 1 << 80, "empty": ""}},
    {
        "args": {
            "when": datetime.datetime(2024, 2, 29, 1, 2, 3),
            "id": uuid.UUID(int=7),
            "price": decimal.Decimal("1.10"),
            "set": {3},
            "bytes": b"raw",
            "error": ValueError("x"),
        }
    },
]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_text_is_what_oslo_messaging_writes(message: dict[str, Any]) -> None:
    from oslo_messaging._drivers import common

    from osloxide.messaging.rabbit import envelope

    assert envelope.sealed(message) == json.dumps(common.serialize_msg(message))


def test_what_cannot_be_written_is_the_same_error() -> None:
    from oslo_messaging._drivers import common

    from osloxide.messaging.rabbit import envelope

    circle: dict[str, Any] = {}
    circle["again"] = circle
    for message in (circle, {"args": {(1, 2): 3}}):
        with pytest.raises(Exception) as stock:  # noqa: PT011  (whichever it is)
            common.serialize_msg(message)
        with pytest.raises(type(stock.value)) as ours:
            envelope.sealed(message)
        assert str(ours.value) == str(stock.value)


@pytest.mark.parametrize(
    "message",
    [
        {"method": "m", "_context_user": "u", "_msg_id": "1", "_reply_q": "q", "_timeout": 3},
        {"method": "m"},
        {"_context_msg_id": 1, "_context_reply_q": 2, "_context_client_timeout": 3, "_context_": 4},
        {"_context_roles": ["a", {"b": []}], "_unique_id": "7", "args": {"_context_x": 1}},
    ],
)
def test_a_context_is_taken_out_as_by_oslo_messaging(message: dict[str, Any]) -> None:
    from oslo_messaging._drivers import amqp

    from osloxide.messaging.rabbit import envelope

    stock = copy.deepcopy(message)
    context = amqp.unpack_context(stock)

    found = envelope.context_of(message)

    assert found == (context.to_dict(), context.msg_id, context.reply_q, context.client_timeout)
    assert list(found[0]) == list(context.to_dict())
    assert message == stock


def test_ids_are_those_of_random_uuids() -> None:
    from osloxide.messaging.rabbit import envelope

    ids = {envelope.unique_id() for _ in range(500)}

    assert len(ids) == 500
    for text in ids:
        found = uuid.UUID(text)
        assert (found.hex, found.version, found.variant) == (text, 4, uuid.RFC_4122)


@pytest.mark.parametrize(
    "text", ["{}", '{"a": [1, NaN, "é"]}', ' {"a": 1}', '{"a": 1}\n', "7", '"x"', "null"]
)
def test_text_is_read_as_by_json(text: str) -> None:
    from osloxide.messaging.rabbit import envelope

    assert repr(envelope.loads(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["", " ", "{", '{"a": 1} x', '{"a" 1}', "nul", "[1,]", '"\x01"'])
def test_what_is_no_json_is_the_same_error(text: str) -> None:
    from osloxide.messaging.rabbit import envelope

    with pytest.raises(ValueError) as stock:  # noqa: PT011  (whichever it is)
        json.loads(text)
    with pytest.raises(type(stock.value)) as ours:
        envelope.loads(text)
    assert str(ours.value) == str(stock.value)
