"""``eventlet.websocket``: websockets as WSGI applications of ``eventlet.wsgi``.

Owns the opening handshakes, and the frames of both protocols: RFC 6455 with RFC 7692
(permessage-deflate), and the drafts 75 and 76 that came before. Rules: those; eventlet.websocket.
"""

from __future__ import annotations

import base64
import codecs
import collections
import contextlib
import errno
import hashlib
import os
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from osloxide._typing import override
from osloxide.green import semaphore, wsgi
from osloxide.green.support import get_errno

__all__ = ["WebSocket", "WebSocketWSGI"]

ACCEPTABLE_CLIENT_ERRORS = {errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN}
DEFAULT_MAX_FRAME_LENGTH = 8 << 20
PROTOCOL_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VALID_CLOSE_STATUS = {
    *range(1000, 1004),
    *range(1007, 1012),
    # Of libraries and applications.
    *range(3000, 5000),
}

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class BadRequest(Exception):
    """A handshake is refused.

    :param status: of the answer; *body* and *headers* are its.
    """

    def __init__(
        self,
        status: str = "400 Bad Request",
        body: bytes | None = None,
        headers: list[tuple[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.status = status
        self.body = body
        self.headers = headers


class ConnectionClosedError(Exception):
    """The connection is over."""


class FailedConnectionError(Exception):
    """The peer breaks the protocol: the connection is closed with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class ProtocolError(ValueError):
    """A frame is asked for that the protocol does not have."""


class WebSocketWSGI:
    """A WSGI application that calls *handler* with a :class:`WebSocket` for each client.

    :param max_frame_length: bytes of an incoming frame, and of what it is when uncompressed.
    """

    def __init__(
        self, handler: Callable[[Any], Any], max_frame_length: int = DEFAULT_MAX_FRAME_LENGTH
    ) -> None:
        self.handler = handler
        self.protocol_version: int | None = None
        self.support_legacy_versions = True
        self.supported_protocols: list[str] = []
        self.origin_checker: Callable[[Any, Any], bool] | None = None
        self.max_frame_length = max_frame_length

    @classmethod
    def configured(
        cls,
        handler: Callable[[Any], Any] | None = None,
        supported_protocols: list[str] | None = None,
        origin_checker: Callable[[Any, Any], bool] | None = None,
        support_legacy_versions: bool = False,
    ) -> Any:
        """The class as a decorator with options.

        :param origin_checker: called with the Host and Origin of a client; False refuses it.
        """

        def decorator(handler: Callable[[Any], Any]) -> WebSocketWSGI:
            application = cls(handler)
            application.support_legacy_versions = support_legacy_versions
            application.origin_checker = origin_checker
            if supported_protocols:
                application.supported_protocols = supported_protocols
            return application

        return decorator if handler is None else decorator(handler)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        connection = [p.strip() for p in environ.get("HTTP_CONNECTION", "").lower().split(",")]
        upgrade = environ.get("HTTP_UPGRADE", "").lower()
        if "upgrade" not in connection or upgrade != "websocket":
            start_response("400 Bad Request", [("Connection", "close")])
            return []
        try:
            if "HTTP_SEC_WEBSOCKET_VERSION" in environ:
                ws: WebSocket = self._handle_hybi_request(environ)
            elif self.support_legacy_versions:
                ws = self._handle_legacy_request(environ)
            else:
                raise BadRequest
        except BadRequest as refusal:
            start_response(refusal.status, [("Connection", "close"), *(refusal.headers or [])])
            return [refusal.body or b""]
        if "eventlet.set_idle" in environ:
            environ["eventlet.set_idle"]()
        try:
            self.handler(ws)
        except OSError as error:
            if get_errno(error) not in ACCEPTABLE_CLIENT_ERRORS:
                raise
        ws._send_closing_frame(True)
        wsgi.WSGI_LOCAL.already_handled = True
        return []

    @staticmethod
    def _socket(environ: dict[str, Any]) -> Any:
        if "eventlet.input" in environ:
            return environ["eventlet.input"].get_socket()
        if "gunicorn.socket" in environ:
            return environ["gunicorn.socket"]
        raise Exception("No eventlet.input or gunicorn.socket present in environ.")

    # ---- drafts 75 and 76 -----------------------------------------------------------------------

    def _handle_legacy_request(self, environ: dict[str, Any]) -> WebSocket:
        sock = self._socket(environ)
        proof = b""
        if "HTTP_SEC_WEBSOCKET_KEY1" in environ:
            self.protocol_version = 76
            if "HTTP_SEC_WEBSOCKET_KEY2" not in environ:
                raise BadRequest
            numbers = [self._extract_number(environ[f"HTTP_SEC_WEBSOCKET_KEY{n}"]) for n in (1, 2)]
            # The request has no length, and eight bytes all the same.
            environ["wsgi.input"].content_length = 8
            key = struct.pack(">II", *numbers) + environ["wsgi.input"].read(8)
            proof = hashlib.md5(key, usedforsecurity=False).digest()
        else:
            self.protocol_version = 75
        scheme = "wss" if environ.get("wsgi.url_scheme") == "https" else "ws"
        location = (
            f"{scheme}://{environ.get('HTTP_HOST')}"
            f"{environ.get('SCRIPT_NAME')}{environ.get('PATH_INFO')}"
        )
        if environ.get("QUERY_STRING") is not None:
            location += f"?{environ['QUERY_STRING']}"
        prefix, title = ("", "Web Socket") if self.protocol_version == 75 else ("Sec-", "WebSocket")
        lines = [
            f"HTTP/1.1 101 {title} Protocol Handshake",
            "Upgrade: WebSocket",
            "Connection: Upgrade",
            f"{prefix}WebSocket-Origin: {environ.get('HTTP_ORIGIN')}",
        ]
        if self.protocol_version == 76:
            protocol = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "default")
            lines.append(f"Sec-WebSocket-Protocol: {protocol}")
        lines += [f"{prefix}WebSocket-Location: {location}", "", ""]
        sock.sendall("\r\n".join(lines).encode() + proof)
        return WebSocket(sock, environ, self.protocol_version)

    def _extract_number(self, value: str) -> int:
        """The number that a key of draft 76 hides: its digits, divided by its spaces."""
        digits = "".join(char for char in value if char in "0123456789")
        return int(digits) // value.count(" ")

    # ---- RFC 6455 -------------------------------------------------------------------------------

    def _handle_hybi_request(self, environ: dict[str, Any]) -> RFC6455WebSocket:
        sock = self._socket(environ)
        version = environ["HTTP_SEC_WEBSOCKET_VERSION"]
        if version not in ("8", "13"):
            raise BadRequest(
                status="426 Upgrade Required", headers=[("Sec-WebSocket-Version", "8, 13")]
            )
        self.protocol_version = int(version)
        if "HTTP_SEC_WEBSOCKET_KEY" not in environ:
            raise BadRequest
        older = environ.get("HTTP_SEC_WEBSOCKET_ORIGIN", "") if self.protocol_version <= 8 else ""
        origin = environ.get("HTTP_ORIGIN", older)
        if self.origin_checker and not self.origin_checker(environ.get("HTTP_HOST"), origin):
            raise BadRequest(status="403 Forbidden")
        offered = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL") or ""
        protocol = next(
            (p for p in map(str.strip, offered.split(",")) if p in self.supported_protocols), None
        )
        key = environ["HTTP_SEC_WEBSOCKET_KEY"].encode() + PROTOCOL_GUID
        accept = base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest())
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept,
        ]
        if protocol:
            lines.append(b"Sec-WebSocket-Protocol: " + protocol.encode())
        extensions = {}
        wanted = self._parse_extension_header(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS"))
        deflate = self._negotiate_permessage_deflate(wanted)
        if deflate is not None:
            extensions["permessage-deflate"] = deflate
        formatted = self._format_extension_header(extensions)
        if formatted is not None:
            lines.append(b"Sec-WebSocket-Extensions: " + formatted)
        sock.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        return RFC6455WebSocket(
            sock,
            environ,
            self.protocol_version,
            protocol=protocol,
            extensions=extensions,
            max_frame_length=self.max_frame_length,
        )

    def _parse_extension_header(self, header: str | None) -> dict[str, list[Any]] | None:
        if header is None:
            return None
        found: dict[str, list[Any]] = {}
        for extension in header.split(","):
            name, *options = extension.split(";")
            config: dict[str, Any] = {}
            for option in options:
                key, mark, value = option.partition("=")
                config[key.strip().lower()] = value.strip().strip('"').lower() if mark else True
            found.setdefault(name.strip().lower(), []).append(config)
        return found

    def _negotiate_permessage_deflate(
        self, extensions: dict[str, list[Any]] | None
    ) -> dict[str, Any] | None:
        """The first of the client's proposals that can be met."""
        for config in (extensions or {}).get("permessage-deflate", []):
            wanted: dict[str, Any] = {
                "server_no_context_takeover": config.get("server_no_context_takeover", False),
                "client_no_context_takeover": config.get("client_no_context_takeover", False),
            }
            for key in ("server_max_window_bits", "client_max_window_bits"):
                bits = config.get(key)
                if bits is not None:
                    wanted[key] = zlib.MAX_WBITS if bits is True else int(bits)
            if all(8 <= wanted[key] <= 15 for key in wanted if key.endswith("bits")):
                return wanted
        return None

    def _format_extension_header(self, extensions: dict[str, dict[str, Any]]) -> bytes | None:
        parts = []
        for name, config in extensions.items():
            options = [
                key if value is True else f"{key}={value}"
                for key, value in config.items()
                if value is not False
            ]
            parts.append("; ".join([name, *options]))
        return ", ".join(parts).encode() if parts else None


class WebSocket:
    """A websocket of draft 75 or 76.

    :ivar path: of the request; *origin* and *protocol* are headers of it, *environ* is all of it.
    """

    def __init__(self, sock: Any, environ: dict[str, Any], version: int = 76) -> None:
        self.log: Any = environ.get("wsgi.errors", sys.stderr)
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        self.log_context = (
            f"server={environ.get('HTTP_HOST')}/{path} "
            f"client={environ.get('REMOTE_ADDR')}:{environ.get('REMOTE_PORT')}"
        )
        self.socket = sock
        self.origin = environ.get("HTTP_ORIGIN")
        self.protocol = environ.get("HTTP_WEBSOCKET_PROTOCOL")
        self.path = environ.get("PATH_INFO")
        self.environ = environ
        self.version = version
        self.websocket_closed = False
        self._buf = b""
        self._msgs: collections.deque[str] = collections.deque()
        self._sendlock = semaphore.Semaphore()

    def _pack_message(self, message: Any) -> bytes:
        if not isinstance(message, (str, bytes)):
            message = str(message)
        if isinstance(message, str):
            message = message.encode("utf-8")
        packed: bytes = b"\x00" + message + b"\xff"
        return packed

    def _parse_messages(self) -> list[str]:
        """Take whole messages out of the buffer."""
        messages = []
        buf = self._buf
        while buf:
            if buf[0] == 0:
                text, mark, rest = buf[1:].partition(b"\xff")
                if not mark:
                    break
                messages.append(text.decode("utf-8", "replace"))
                buf = rest
            elif buf[0] == 255:
                if len(buf) < 2:
                    break
                assert buf[1] == 0, f"Unexpected closing handshake: {buf!r}"
                self.websocket_closed = True
                break
            else:
                raise ValueError(f"Don't understand how to parse this type of message: {buf!r}")
        self._buf = buf
        return messages

    def send(self, message: Any, **_options: Any) -> None:
        """Send *message*; what is no text is made one.

        :raises OSError: the client has gone.
        """
        self._send(self._pack_message(message))

    def _send(self, frame: bytes) -> None:
        with self._sendlock:
            self.socket.sendall(frame)

    def wait(self) -> Any:
        """Wait for the next message; None when the client has closed."""
        while not self._msgs:
            if self.websocket_closed:
                return None
            data = self.socket.recv(8096)
            if data == b"":
                return None
            self._buf += data
            self._msgs.extend(self._parse_messages())
        return self._msgs.popleft()

    def _send_closing_frame(self, ignore_send_errors: bool = False) -> None:
        if self.version == 76 and not self.websocket_closed:
            try:
                self.socket.sendall(b"\xff\x00")
            except OSError:
                if not ignore_send_errors:
                    raise
            self.websocket_closed = True

    def close(self) -> None:
        """Close the connection; returning from the handler is the better way."""
        try:
            self._send_closing_frame(True)
            self.socket.shutdown(True)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.log.write(f"{self.log_context} socket shutdown error: {error}")
        finally:
            self.socket.close()


class _Message:
    """A message under way: its frames so far."""

    def __init__(self, opcode: int, limit: int, decompressor: Any) -> None:
        self.opcode = opcode
        self.finished = False
        self.data: list[bytes] = []
        self._limit = limit
        self.decompressor = decompressor

    def getvalue(self) -> Any:
        """All of it.

        :raises FailedConnectionError: it is too long when uncompressed, or no text.
        """
        data = b"".join(self.data)
        if self.decompressor is not None and not self.opcode & 8:
            data = self.decompressor.decompress(data + b"\x00\x00\xff\xff", self._limit)
            if self.decompressor.unconsumed_tail:
                raise FailedConnectionError(
                    1009,
                    f"Incoming compressed frame exceeds length limit of {self._limit} bytes.",
                )
        if self.opcode != _TEXT:
            return data
        return codecs.decode(data, "utf-8")


class RFC6455WebSocket(WebSocket):
    """A websocket of RFC 6455, or of its drafts 8 and later.

    :param client: this is the client's end.
    :param extensions: what was negotiated, with its options.
    """

    def __init__(
        self,
        sock: Any,
        environ: dict[str, Any],
        version: int = 13,
        protocol: str | None = None,
        client: bool = False,
        extensions: dict[str, Any] | None = None,
        max_frame_length: int = DEFAULT_MAX_FRAME_LENGTH,
    ) -> None:
        super().__init__(sock, environ, version)
        self.iterator = self._iter_frames()
        self.client = client
        self.protocol = protocol
        self.extensions = extensions or {}
        self.max_frame_length = max_frame_length
        self._deflate_enc: Any = None
        self._deflate_dec: Any = None
        self._remote_close_data: bytes | None = None

    # ---- compression ----------------------------------------------------------------------------

    def _get_permessage_deflate_enc(self) -> Any:
        options = self.extensions.get("permessage-deflate")
        if options is None:
            return None
        side = "client" if self.client else "server"
        fresh = options.get(f"{side}_no_context_takeover")
        if fresh or self._deflate_enc is None:
            bits = options.get(f"{side}_max_window_bits", zlib.MAX_WBITS)
            # zlib has no raw stream of 8 bits; one of 9 is read by whoever takes 8.
            made = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -max(bits, 9))
            if fresh:
                return made
            self._deflate_enc = made
        return self._deflate_enc

    def _get_permessage_deflate_dec(self, rsv1: int) -> Any:
        options = self.extensions.get("permessage-deflate")
        if options is None or not rsv1:
            return None
        side = "server" if self.client else "client"
        fresh = options.get(f"{side}_no_context_takeover")
        if fresh or self._deflate_dec is None:
            made = zlib.decompressobj(-options.get(f"{side}_max_window_bits", zlib.MAX_WBITS))
            if fresh:
                return made
            self._deflate_dec = made
        return self._deflate_dec

    # ---- reading --------------------------------------------------------------------------------

    def _get_bytes(self, numbytes: int) -> bytes:
        parts = []
        while numbytes:
            data = self.socket.recv(numbytes)
            if not data:
                raise ConnectionClosedError
            parts.append(data)
            numbytes -= len(data)
        return b"".join(parts)

    @staticmethod
    def _apply_mask(data: bytes, mask: Any, length: int | None = None, offset: int = 0) -> bytes:
        """XOR with the mask, which begins *offset* bytes earlier."""
        if length is not None:
            data = data[:length]
        size = len(data)
        key = bytes(mask[(offset + n) % 4] for n in range(4)) * (size // 4 + 1)
        number = int.from_bytes(data, "big") ^ int.from_bytes(key[:size], "big")
        return number.to_bytes(size, "big")

    def _handle_control_frame(self, opcode: int, data: bytes) -> None:
        if opcode == _PING:
            self.send(data, control_code=_PONG)
        elif opcode == _CLOSE:
            self._remote_close_data = data
            self.close(close_data=(self._close_status(data), ""))
            raise ConnectionClosedError

    @staticmethod
    def _close_status(data: bytes) -> int:
        if not data:
            return 1000
        if len(data) == 1:
            return 1002
        status: int = struct.unpack_from("!H", data)[0]
        if status not in VALID_CLOSE_STATUS:
            raise FailedConnectionError(1002, "Unexpected close status code.")
        try:
            data[2:].decode("utf-8")
        except UnicodeDecodeError:
            raise FailedConnectionError(1002, "Close message data should be valid UTF-8.") from None
        return status

    def _iter_frames(self) -> Iterator[Any]:
        fragmented: _Message | None = None
        try:
            while True:
                message = self._recv_frame(fragmented)
                if message.opcode & 8:
                    self._handle_control_frame(message.opcode, message.getvalue())
                    continue
                fragmented = message
                if message.finished:
                    fragmented = None
                    try:
                        value = message.getvalue()
                    except UnicodeDecodeError:
                        raise FailedConnectionError(1007, "Text data must be valid utf-8") from None
                    yield value
        except FailedConnectionError as failure:
            self.close(close_data=(failure.status, failure.message))
        except ConnectionClosedError:
            return
        except Exception:
            self.close(close_data=(1011, "Internal Server Error"))
            raise

    def _recv_frame(self, message: _Message | None = None) -> _Message:
        first, second = self._get_bytes(2)
        finished, rsv, opcode = bool(first & 0x80), first >> 4 & 7, first & 15
        masked, length = bool(second & 0x80), second & 0x7F
        self._check_frame(finished, rsv, opcode, masked, length, message)
        if length == 126:
            (length,) = struct.unpack("!H", self._get_bytes(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._get_bytes(8))
        if length > self.max_frame_length:
            raise FailedConnectionError(
                1009,
                f"Incoming frame of {length} bytes is above length limit of "
                f"{self.max_frame_length} bytes.",
            )
        mask = self._get_bytes(4) if masked else None
        if message is None or opcode & 8:
            decompressor = self._get_permessage_deflate_dec(rsv & 4)
            message = _Message(opcode, self.max_frame_length, decompressor)
        data = self._get_bytes(length)
        message.data.append(data if mask is None else self._apply_mask(data, mask))
        message.finished = finished
        return message

    def _check_frame(
        self,
        finished: bool,
        rsv: int,
        opcode: int,
        masked: bool,
        length: int,
        message: _Message | None,
    ) -> None:
        """RFC 6455, section 5.2 and after.

        :raises FailedConnectionError: the peer may not send such a frame now.
        """
        fault = None
        if rsv and (rsv & 3 or "permessage-deflate" not in self.extensions):
            fault = (
                "RSV1, RSV2, RSV3: MUST be 0 unless an extension is negotiated that defines "
                "meanings for non-zero values."
            )
        elif opcode not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            fault = "Unknown opcode received."
        elif not masked and not self.client:
            fault = "A client MUST mask all frames that it sends to the server"
        elif opcode & 8 and not finished:
            fault = "Control frames must not be fragmented."
        elif opcode & 8 and length > 125:
            fault = "All control frames MUST have a payload length of 125 bytes or less"
        elif opcode and not opcode & 8 and message:
            fault = "Received a non-continuation opcode within fragmented message."
        elif not opcode and not message:
            fault = "Received continuation opcode with no previous fragments received."
        if fault:
            raise FailedConnectionError(1002, fault)

    @override
    def wait(self) -> Any:
        """Wait for the next message: text or bytes; None when the connection is over."""
        return next(self.iterator, None)

    # ---- writing --------------------------------------------------------------------------------

    @override
    def _pack_message(
        self,
        message: Any,
        masked: bool = False,
        continuation: bool = False,
        final: bool = True,
        control_code: int | None = None,
    ) -> bytes:
        is_text = isinstance(message, str)
        if is_text:
            message = message.encode("utf-8")
        compressor = None if control_code else self._get_permessage_deflate_enc()
        compressed = 0
        if message and compressor is not None:
            message = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
            message = message[:-4]
            compressed = 0x40
        size = len(message)
        masked = masked and size > 0
        if control_code:
            if control_code not in (_CLOSE, _PING, _PONG):
                raise ProtocolError("Unknown control opcode.")
            if continuation or not final:
                raise ProtocolError("Control frame cannot be a fragment.")
            if size > 125:
                raise ProtocolError("Control frame data too large (>125).")
            first = control_code | 0x80
        else:
            opcode = _CONTINUATION if continuation else (_TEXT if is_text else _BINARY) | compressed
            first = opcode | (0x80 if final else 0)
        bit = 0x80 if masked else 0
        if size > 65535:
            head = struct.pack("!BBQ", first, bit | 127, size)
        elif size > 125:
            head = struct.pack("!BBH", first, bit | 126, size)
        else:
            head = struct.pack("!BB", first, bit | size)
        if masked:
            mask = os.urandom(4)
            return head + mask + self._apply_mask(message, mask)
        return head + bytes(message)

    @override
    def send(self, message: Any, **kw: Any) -> None:
        """Send text or bytes.

        :param continuation: it goes on with a message that was begun with ``final=False``.
        :param control_code: 9 (ping) or 10 (pong).
        """
        kw["masked"] = self.client
        self._send(self._pack_message(message, **kw))

    @override
    def _send_closing_frame(
        self, ignore_send_errors: bool = False, close_data: tuple[int, Any] | None = None
    ) -> None:
        if self.version not in (8, 13) or self.websocket_closed:
            return
        data: Any = ""
        if close_data is not None:
            status, text = close_data
            data = struct.pack("!H", status) + (text.encode() if isinstance(text, str) else text)
        try:
            self.send(data, control_code=_CLOSE)
        except OSError:
            if not ignore_send_errors:
                raise
        self.websocket_closed = True

    @override
    def close(self, close_data: tuple[int, Any] | None = None) -> None:
        """Close the connection.

        :param close_data: status and reason for the client.
        """
        try:
            self._send_closing_frame(close_data=close_data, ignore_send_errors=True)
            with contextlib.suppress(BrokenPipeError):
                self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.log.write(f"{self.log_context} socket shutdown error: {error}")
        finally:
            self.socket.close()
