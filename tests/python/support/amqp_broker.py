"""A broker on a private port that does what AMQP clients of oslo.messaging ask, and notes it.

Owns the broker's end of the protocol, as far as those clients use it: handshake, declarations,
bindings, consumers, confirms, and the way of a message to the queue that is called as its routing
key, or to all queues of a fanout exchange. Refuses nothing, keeps nothing once it is closed, and
knows no message. Connections are told apart by the virtual host that they open, ``SETTING.ROLE``:
those of one setting share their queues.

Rules: AMQP 0-9-1 sections 1.4 to 1.8 and 4.2; RabbitMQ's publisher confirms.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from typing import Any

_METHODS: dict[tuple[int, int], tuple[str, str]] = {
    (40, 10): (
        "exchange.declare",
        "H exchange:s type:s passive,durable,auto_delete,internal,nowait:b arguments:F",
    ),
    (50, 10): (
        "queue.declare",
        "H queue:s passive,durable,exclusive,auto_delete,nowait:b arguments:F",
    ),
    (50, 20): ("queue.bind", "H queue:s exchange:s routing_key:s nowait:b arguments:F"),
    (50, 40): ("queue.delete", "H queue:s if_unused,if_empty,nowait:b"),
    (60, 10): ("basic.qos", "prefetch_size:I prefetch_count:H global:b"),
    (60, 20): (
        "basic.consume",
        "H queue:s consumer_tag:s no_local,no_ack,exclusive,nowait:b arguments:F",
    ),
    (60, 40): ("basic.publish", "H exchange:s routing_key:s mandatory,immediate:b"),
    (85, 10): ("confirm.select", "nowait:b"),
}
"""What is noted, with its arguments: ``name:type``, several names for bits, no name if reserved."""

_PROPERTIES = (
    ("content_type", "s"), ("content_encoding", "s"), ("headers", "F"), ("delivery_mode", "B"),
    ("priority", "B"), ("correlation_id", "s"), ("reply_to", "s"), ("expiration", "s"),
    ("message_id", "s"), ("timestamp", "Q"), ("type", "s"), ("user_id", "s"), ("app_id", "s"),
)  # fmt: skip

_ANSWERS: dict[tuple[int, int], tuple[int, bytes]] = {
    (20, 10): (11, bytes(4)),
    (20, 40): (41, b""),
    (40, 10): (11, b""),
    (50, 20): (21, b""),
    (50, 40): (41, bytes(4)),
    (60, 10): (11, b""),
    (85, 10): (11, b""),
}

_UNIQUE = re.compile(r"[0-9a-f]{32}")


class Reader:
    """Takes AMQP's types from the beginning of *data*."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        assert len(piece) == count, "cut short"
        self._at += count
        return piece

    def number(self, code: str) -> int:
        value: int = struct.unpack(f">{code}", self.take(struct.calcsize(code)))[0]
        return value

    def value(self, kind: str) -> Any:
        if kind == "s":
            return self.take(self.number("B")).decode()
        if kind == "S":
            return self.take(self.number("I")).decode()
        if kind == "F":
            inner, found = Reader(self.take(self.number("I"))), {}
            while inner._at < len(inner._data):
                name = inner.value("s")
                found[name] = inner.field()
            return found
        return self.number(kind)

    def field(self) -> Any:
        kind = chr(self.number("B"))
        if kind == "t":
            return bool(self.number("B"))
        numbers = {"b": "b", "B": "B", "s": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q"}
        if kind in numbers:
            return self.number(numbers[kind])
        assert kind in "SF", f"a field of type {kind}"
        return self.value(kind)


def arguments(data: bytes, signature: str) -> dict[str, Any]:
    """What the payload of a method says after its number."""
    reader, found = Reader(data), {}
    for part in signature.split():
        name, _, kind = part.rpartition(":")
        if kind == "b":
            bits = reader.number("B")
            for number, bit in enumerate(name.split(",")):
                found[bit] = bool(bits >> number & 1)
        else:
            value = reader.value(kind)
            if name:
                found[name] = value
    return found


def properties(data: bytes) -> dict[str, Any]:
    """What a content header says of its body."""
    reader = Reader(data)
    reader.take(12)
    flags = reader.number("H")
    return {
        name: reader.value(kind)
        for number, (name, kind) in enumerate(_PROPERTIES)
        if flags >> (15 - number) & 1
    }


class Broker:
    """Listens on :attr:`port` until it is closed."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        #: What each virtual host's clients have asked for, in the order of its arrival.
        self.noted: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._consumers: dict[tuple[str, str], tuple[_Connection, int, str]] = {}
        self._waiting: dict[tuple[str, str], list[tuple[bytes, bytes]]] = defaultdict(list)
        self._bound: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._connections: list[_Connection] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connections.append(_Connection(self, self._listener.accept()[0]))

    def note(self, host: str, method: str, told: dict[str, Any]) -> None:
        with self._lock:
            self.noted[host].append({"method": method} | told)

    def bind(self, setting: str, exchange: str, queue: str) -> None:
        with self._lock:
            self._bound[setting, exchange].add(queue)

    def consume(self, setting: str, queue: str, who: tuple[_Connection, int, str]) -> None:
        """Answer, and deliver from then on: what comes after the answer must find the consumer."""
        connection, channel, tag = who
        with self._lock:
            connection.say(channel, (60, 21), _short(tag))
            self._consumers[setting, queue] = who
            for header, body in self._waiting.pop((setting, queue), []):
                connection.deliver(channel, tag, header, body)

    def route(self, setting: str, exchange: str, key: str, header: bytes, body: bytes) -> None:
        with self._lock:
            for queue in {key} if key else self._bound[setting, exchange]:
                who = self._consumers.get((setting, queue))
                if who is None:
                    # Servers begin to consume after they have declared, in a thread of their own.
                    self._waiting[setting, queue].append((header, body))
                else:
                    who[0].deliver(who[1], who[2], header, body)

    def kinds(self, host: str) -> list[dict[str, Any]]:
        """What was noted of *host*, each kind once and in an order that is always the same.

        Names that differ from run to run are written as ``UNIQUE`` and ``COUNTED``.
        """
        with self._lock:
            texts = {json.dumps(each, sort_keys=True) for each in self.noted[host]}
        return [json.loads(text) for text in sorted({_plain(text) for text in texts})]

    def drop(self) -> None:
        """Close the sockets of all connections without a word."""
        for connection in self._connections:
            connection.close()

    def close(self) -> None:
        """End all connections and threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.drop()


def _plain(text: str) -> str:
    return re.sub(r"(wire:rpc_wire)_\d+:\d+", r"\1:COUNTED", _UNIQUE.sub("UNIQUE", text))


class _Connection:
    """The broker's end of one connection, with a thread that reads from it."""

    def __init__(self, broker: Broker, stream: socket.socket) -> None:
        self._broker = broker
        self._stream = stream
        self._lock = threading.Lock()
        #: Messages reach a channel in the order of their tags.
        self._delivering = threading.Lock()
        self._host = ""
        self._tags: dict[int, int] = defaultdict(int)
        self._published: dict[int, int] = defaultdict(int)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._stream.close()

    def _send(self, *frames: tuple[int, int, bytes]) -> None:
        data = b"".join(
            struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"
            for kind, channel, payload in frames
        )
        with self._lock, contextlib.suppress(OSError):
            self._stream.sendall(data)

    def say(self, channel: int, number: tuple[int, int], told: bytes = b"") -> None:
        self._send((1, channel, struct.pack(">HH", *number) + told))

    def deliver(self, channel: int, consumer: str, header: bytes, body: bytes) -> None:
        bodies = [(3, channel, body[at : at + 100_000]) for at in range(0, len(body), 100_000)]
        with self._delivering:
            self._tags[channel] += 1
            told = _short(consumer) + struct.pack(">QB", self._tags[channel], 0) + b"\0\0"
            method = struct.pack(">HH", 60, 60) + told
            self._send((1, channel, method), (2, channel, header), *bodies)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._stream.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _frame(self) -> tuple[int, int, bytes]:
        while True:
            kind, channel, size = struct.unpack(">BHI", self._read(7))
            payload = self._read(size + 1)
            assert payload[-1] == 0xCE
            if kind != 8:
                return kind, channel, payload[:-1]

    def _run(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._greet()
            while True:
                kind, channel, payload = self._frame()
                assert kind == 1, "a method is expected"
                number: tuple[int, int] = struct.unpack(">HH", payload[:4])  # type: ignore[assignment]
                if number == (10, 50):
                    self.say(0, (10, 51))
                    return
                self._answer(channel, number, payload[4:])

    def _greet(self) -> None:
        assert self._read(8) == b"AMQP\0\0\x09\x01"
        features = b"".join(
            _short(name) + b"t\1"
            for name in ("publisher_confirms", "basic.nack", "consumer_cancel_notify",
                         "connection.blocked", "authentication_failure_close")
        )  # fmt: skip
        table = _short("capabilities") + b"F" + _long(features)
        self.say(0, (10, 10), b"\0\x09" + _long(table) + _long(b"AMQPLAIN PLAIN") + _long(b"en_US"))
        self._frame()
        self.say(0, (10, 30), struct.pack(">HIH", 2047, 131_072, 60))
        self._frame()
        _, _, opened = self._frame()
        self._host = Reader(opened[4:]).value("s")
        self.say(0, (10, 41), b"\0")

    def _answer(self, channel: int, number: tuple[int, int], payload: bytes) -> None:
        setting = self._host.partition(".")[0]
        told: dict[str, Any] = {}
        if number in _METHODS:
            name, signature = _METHODS[number]
            told = arguments(payload, signature)
            if number == (60, 40):
                self._publish(channel, setting, told)
                return
            self._broker.note(self._host, name, told)
        if number == (50, 10):
            self.say(channel, (50, 11), _short(told["queue"]) + bytes(8))
        elif number == (60, 20):
            self._broker.consume(setting, told["queue"], (self, channel, told["consumer_tag"]))
        elif number in _ANSWERS:
            answer, rest = _ANSWERS[number]
            if number == (50, 20):
                self._broker.bind(setting, told["exchange"], told["queue"])
            self.say(channel, (number[0], answer), rest)

    def _publish(self, channel: int, setting: str, told: dict[str, Any]) -> None:
        _, _, header = self._frame()
        length = struct.unpack(">Q", header[4:12])[0]
        body = b""
        while len(body) < length:
            body += self._frame()[2]
        told["properties"] = properties(header)
        told["members"] = members(body)
        self._broker.note(self._host, "basic.publish", told)
        self._published[channel] += 1
        self.say(channel, (60, 80), struct.pack(">QB", self._published[channel], 0))
        self._broker.route(setting, told["exchange"], told["routing_key"], header, body)


def members(body: bytes) -> list[str]:
    """The names in a JSON object, those in oslo.messaging's envelope among them."""
    outer = json.loads(body)
    inner = json.loads(outer["oslo.message"]) if "oslo.message" in outer else {}
    return sorted([*outer, *(f"oslo.message/{name}" for name in inner)])


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
