"""Messages as text: the JSON that oslo.messaging writes and reads, in fewer steps.

Owns the text of a message, which is oslo.messaging's byte for byte, and what is taken out of one
that has arrived. Sends nothing.

Imports oslo.messaging: to be imported after it, by what amends it.
Rules: ``serialize_msg`` and ``deserialize_msg`` of oslo_messaging/_drivers/common.py, and
``jsonutils.dumps``, which makes an encoder for each message.
"""

from __future__ import annotations

import json
import os
from typing import Any

from oslo_messaging._drivers import common
from oslo_serialization import jsonutils

_SEAL = json.dumps(common.serialize_msg({}))
"""An envelope around nothing."""

_BEGINNING, _NOTHING, _END = _SEAL.rpartition(json.dumps("{}"))
"""What stands before and after the message in each of them."""

_encode = json.JSONEncoder(default=jsonutils.to_primitive).encode
_quoted = json.encoder.encode_basestring_ascii
_decode = json.JSONDecoder().raw_decode


def loads(text: str) -> Any:
    """What ``json.loads`` makes of *text*, in one step where nothing stands around the value."""
    try:
        value, end = _decode(text)
    except json.JSONDecodeError:
        return json.loads(text)
    return value if end == len(text) else json.loads(text)


def unique_id() -> str:
    """What ``uuid.uuid4().hex`` is, without the object."""
    digits = bytearray(os.urandom(16))
    digits[6] = digits[6] & 0x0F | 0x40
    digits[8] = digits[8] & 0x3F | 0x80
    return digits.hex()


def sealed(message: dict[str, Any]) -> str:
    """The text of an envelope with *message*."""
    if not _NOTHING:
        return json.dumps(common.serialize_msg(message))
    return f"{_BEGINNING}{_quoted(_encode(message))}{_END}"


def context_of(message: dict[str, Any]) -> tuple[dict[str, Any], Any, Any, Any]:
    """Take the context, the call's id, the reply queue and the client's timeout out of *message*.

    As ``unpack_context`` of oslo_messaging/_drivers/amqp.py and ``to_dict()`` of what that returns,
    which copies all values though they are no other's.
    """
    context = {key[9:]: message.pop(key) for key in list(message) if key.startswith("_context_")}
    msg_id, reply_queue = message.pop("_msg_id", None), message.pop("_reply_q", None)
    timeout = message.pop("_timeout", None)
    context.pop("msg_id", None)
    context.pop("reply_q", None)
    context["client_timeout"] = timeout
    return context, msg_id, reply_queue, timeout
