"""A WebSocket client's side (RFC 6455) without a socket: bytes in, messages out, and the bytes to send for them.

No extensions and no subprotocols. Whatever the other side does wrong is a `WebSocketError`.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import os
import re
import struct
from dataclasses import dataclass
from typing import Optional, Union

#: The most bytes that a message may have, in all its fragments.
MAX_MESSAGE_BYTES = 16 << 20
#: The most bytes that the answer to the handshake may have before its body.
MAX_HEAD_BYTES = 64 << 10

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_CONTROL_BYTES = 125


class WebSocketError(Exception):
    """The other side did what RFC 6455 forbids, or sent more than is taken."""

    def __init__(self, message: str, close_code: int = 1002) -> None:
        self.close_code = close_code
        super().__init__(message)


class Opcode(enum.IntEnum):
    """What a frame is (section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


@dataclass(frozen=True)
class Closed:
    """The other side closes: no message follows."""

    #: Section 7.4; 1005 where it gave none.
    code: int
    reason: str


#: Text, binary data, or the end.
Message = Union[str, bytes, Closed]


def new_key() -> str:
    """Make a `Sec-WebSocket-Key`."""
    return base64.b64encode(os.urandom(16)).decode("ascii")


def handshake(target: str, key: str, headers: dict[str, str]) -> bytes:
    """Write the request that opens a WebSocket (section 4.1).

    Args:
        target: Path and query, quoted already.
        key: What `new_key` gave.
        headers: More headers.
    """
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: spore",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if any(character in line for line in lines for character in "\r\n\0"):
        raise ValueError("a line end or NUL in the request's head")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


@dataclass(frozen=True)
class HandshakeReply:
    """The answer to the request, without its body."""

    status: int
    headers: dict[str, str]
    #: What came after the head: the first frames, or the beginning of a body.
    rest: bytes

    def check(self, key: str) -> None:
        """See whether the other side agreed.

        Raises:
            WebSocketError: It did not.
        """
        digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
        accept = base64.b64encode(digest).decode("ascii")
        connection = [word.strip().lower() for word in self.headers.get("connection", "").split(",")]
        if self.status != 101:
            raise WebSocketError(f"the answer is {self.status} and not 101")
        if self.headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in connection:
            raise WebSocketError("the answer is 101 and no upgrade to WebSocket")
        if self.headers.get("sec-websocket-accept") != accept:
            raise WebSocketError("the answer's Sec-WebSocket-Accept does not belong to the key")
        for name in ("sec-websocket-extensions", "sec-websocket-protocol"):
            if self.headers.get(name):
                raise WebSocketError(f"the answer has a {name} that nobody asked for")

    def is_whole(self, body: bytes) -> bool:
        """Tell whether this is all of a refusal's body.

        Raises:
            WebSocketError: It is too long, or has no length.
        """
        length = self.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_HEAD_BYTES:
            raise WebSocketError(f"the answer is {self.status} and not 101")
        return len(body) >= int(length)


def read_head(received: bytes) -> Optional[HandshakeReply]:
    """Read the answer's head, or nothing as long as it is incomplete.

    Raises:
        WebSocketError: It is no HTTP/1.1, or too long.
    """
    head, end, rest = received.partition(b"\r\n\r\n")
    if not end:
        if len(received) > MAX_HEAD_BYTES:
            raise WebSocketError(f"the answer's head has more than {MAX_HEAD_BYTES} bytes")
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, status = first.partition(" ")
    if version != "HTTP/1.1" or not status[:3].isdigit() or len(status[:3]) != 3:
        raise WebSocketError(f"the answer is no HTTP/1.1: {first!r:.80}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise WebSocketError(f"the answer has a malformed header: {line!r:.80}")
        name = name.lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return HandshakeReply(int(status[:3]), headers, rest)


def message_frame(message: Union[str, bytes]) -> bytes:
    """Write a message of text or bytes."""
    if isinstance(message, str):
        return frame(Opcode.TEXT, message.encode("utf-8"))
    return frame(Opcode.BINARY, message)


def frame(opcode: Opcode, payload: bytes, mask: Optional[bytes] = None) -> bytes:
    """Write a whole message as one masked frame (section 5.2).

    Args:
        opcode: What it is.
        payload: Its data.
        mask: Four bytes; none: random ones, as section 5.3 wants it.
    """
    if opcode >= Opcode.CLOSE and len(payload) > _MAX_CONTROL_BYTES:
        raise ValueError(f"a control frame has at most {_MAX_CONTROL_BYTES} bytes")
    mask = os.urandom(4) if mask is None else mask
    size = len(payload)
    if size <= _MAX_CONTROL_BYTES:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """XOR the payload with the mask over and over (section 5.3)."""
    size = len(payload)
    pattern = (mask * (size // 4 + 1))[:size]
    # As one long integer: a loop over bytes would be a hundred times slower.
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")


def close_payload(code: int, reason: str = "") -> bytes:
    """Write what a close frame says; the reason is cut to what fits."""
    cut = reason.encode("utf-8")[: _MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore")
    return struct.pack("!H", code) + cut.encode("utf-8")


class FrameReader:
    """Takes bytes of the other side and gives messages.

    Attributes:
        replies: Frames that have to be sent for what came: pongs, and the answer to a close. Whoever sends of them
            removes it.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max = max_message_bytes
        self._buffer = bytearray()
        self._fragments: list[bytes] = []
        self._fragments_bytes = 0
        self._opcode: Optional[Opcode] = None
        self._closed = False
        self.replies = bytearray()

    def take_replies(self) -> bytes:
        """Take out all replies."""
        taken = bytes(self.replies)
        # Another thread may have added some since.
        del self.replies[: len(taken)]
        return taken

    def feed(self, data: bytes) -> list[Message]:
        """Take what arrived; what follows a close is ignored.

        Raises:
            WebSocketError: It breaks the protocol. The connection is of no use any more.
        """
        if self._closed:
            return []
        self._buffer += data
        messages: list[Message] = []
        while not self._closed:
            found = self._take_frame()
            if found is None:
                break
            message = self._frame(*found)
            if message is not None:
                messages.append(message)
        return messages

    def _take_frame(self) -> Optional[tuple[bool, Opcode, bytes]]:
        """Take the next frame from the buffer, checked as far as it can be by itself."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        final, size, start = bool(first & 0x80), second & 0x7F, 2
        if first & 0x70:
            raise WebSocketError("a frame has reserved bits set")
        if second & 0x80:
            raise WebSocketError("a frame of the server is masked")
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise WebSocketError(f"a frame has the unknown opcode {first & 0x0F}") from None
        if opcode >= Opcode.CLOSE and (not final or size > _MAX_CONTROL_BYTES):
            raise WebSocketError("a control frame is fragmented or too long")
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            least = 126 if size == 126 else 1 << 16
            size = int.from_bytes(buffer[2:start], "big")
            if size < least or size >> 63:
                raise WebSocketError("a frame's length is not written as it must be")
        if opcode < Opcode.CLOSE and size + self._fragments_bytes > self._max:
            raise WebSocketError(f"a message has more than {self._max} bytes", 1009)
        if len(buffer) < start + size:
            return None
        payload = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return final, opcode, payload

    def _frame(self, final: bool, opcode: Opcode, payload: bytes) -> Optional[Message]:
        if opcode is Opcode.PING:
            self.replies += frame(Opcode.PONG, payload)
            return None
        if opcode is Opcode.PONG:
            return None
        if opcode is Opcode.CLOSE:
            return self._close(payload)
        if opcode is Opcode.CONTINUATION:
            if self._opcode is None:
                raise WebSocketError("a continuation of nothing")
        elif self._opcode is not None:
            raise WebSocketError("a new message within another's fragments")
        else:
            self._opcode = opcode
        self._fragments.append(payload)
        self._fragments_bytes += len(payload)
        if not final:
            return None
        whole, kind = b"".join(self._fragments), self._opcode
        self._fragments, self._fragments_bytes, self._opcode = [], 0, None
        return _text(whole) if kind is Opcode.TEXT else whole

    def _close(self, payload: bytes) -> Closed:
        closed = Closed(1005, "")
        if payload:
            code = int.from_bytes(payload[:2], "big")
            assigned = 1000 <= code <= 1014 and code not in (1004, 1005, 1006)
            if len(payload) == 1 or not (assigned or 3000 <= code <= 4999):
                raise WebSocketError("a close frame without a valid code")
            closed = Closed(code, _text(payload[2:]))
        self._closed = True
        self.replies += frame(Opcode.CLOSE, payload[:2])
        return closed


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WebSocketError("text that is not UTF-8", 1007) from error
