"""The WebSocket protocol, without sockets."""

from __future__ import annotations

import struct
from typing import Optional, Union

import pytest

from spore._core import websocket as ws
from spore._core.websocket import Closed, FrameReader, Opcode, WebSocketError

# RFC 6455 section 1.3.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
ANSWER = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
)


def server(
    opcode: int, payload: bytes, *, final: bool = True, first: Optional[int] = None, mask: bool = False
) -> bytes:
    """A frame as a server writes it, or as it must not."""
    head = bytes([(0x80 if final else 0) | opcode if first is None else first])
    flag = 0x80 if mask else 0
    if len(payload) <= 125:
        head += bytes([flag | len(payload)])
    elif len(payload) < 1 << 16:
        head += struct.pack("!BH", flag | 126, len(payload))
    else:
        head += struct.pack("!BQ", flag | 127, len(payload))
    return head + payload


def unmasked(frame: bytes) -> tuple[int, bytes]:
    """Opcode and payload of a client's frame."""
    assert frame[1] & 0x80
    size, start = frame[1] & 0x7F, 2
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(frame[2:start], "big")
    mask, payload = frame[start : start + 4], frame[start + 4 :]
    assert len(payload) == size
    return frame[0], bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def test_a_masked_text_is_the_one_of_the_rfc() -> None:
    # Section 5.7.
    frame = ws.frame(Opcode.TEXT, b"Hello", bytes.fromhex("37fa213d"))
    assert frame.hex() == "818537fa213d7f9f4d5158"


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 65535, 65536, 70001])
def test_any_length_is_written_so_that_it_can_be_read(size: int) -> None:
    payload = bytes(index * 7 % 256 for index in range(size))
    assert unmasked(ws.message_frame(payload)) == (0x82, payload)


def test_masks_are_new_each_time() -> None:
    assert len({ws.frame(Opcode.BINARY, b"")[2:6] for _ in range(20)}) == 20


def test_a_control_frame_that_is_too_long_is_not_written() -> None:
    with pytest.raises(ValueError, match="125"):
        ws.frame(Opcode.PING, b"x" * 126)
    opcode, payload = unmasked(ws.frame(Opcode.CLOSE, ws.close_payload(1011, "é" * 100)))
    assert opcode == 0x88
    assert payload[2:].decode("utf-8") == "é" * 61


MESSAGES: list[Union[str, bytes, Closed]] = [
    "Hello",
    "Grüße 😀",
    b"\0\xff",
    b"y" * 300,
    b"x" * 70000,
    b"",
    Closed(1000, "bye"),
]
STREAM = b"".join(
    [
        server(1, b"Hello"),
        server(9, b"are you there"),
        # A character cut in two by its fragments, and a ping between them.
        server(1, "Grüße 😀".encode()[:10], final=False),
        server(9, b""),
        server(0, "Grüße 😀".encode()[10:12], final=False),
        server(0, "Grüße 😀".encode()[12:]),
        server(2, b"\0\xff"),
        server(10, b"nobody asked"),
        server(2, b"y" * 300),
        server(2, b"x" * 70000),
        server(2, b"", final=False),
        server(0, b""),
        server(8, struct.pack("!H", 1000) + b"bye"),
        server(1, b"ignored after the close"),
    ]
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000, len(STREAM)])
def test_messages_come_whole_in_whatever_pieces(size: int) -> None:
    reader = FrameReader()
    found: list[ws.Message] = []
    for start in range(0, len(STREAM), size):
        found += reader.feed(STREAM[start : start + size])
    assert found == MESSAGES


def test_pings_are_answered_and_so_is_the_close() -> None:
    reader = FrameReader()
    reader.feed(server(9, b"one") + server(10, b"no answer to this") + server(9, b""))
    first, second = bytes(reader.replies[:9]), bytes(reader.replies[9:])
    assert unmasked(first) == (0x8A, b"one")
    assert unmasked(second) == (0x8A, b"")
    reader.replies.clear()
    assert reader.feed(server(8, b"\x0f\xa1reason")) == [Closed(4001, "reason")]
    assert unmasked(bytes(reader.replies)) == (0x88, b"\x0f\xa1")
    assert reader.feed(server(1, b"more")) == []


def test_a_close_without_a_code_is_one() -> None:
    assert FrameReader().feed(server(8, b"")) == [Closed(1005, "")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(server(1, b"abcd", mask=True), 1002, id="masked by the server"),
        pytest.param(server(1, b"", first=0xC1), 1002, id="reserved bit"),
        pytest.param(server(3, b""), 1002, id="unknown opcode"),
        pytest.param(server(11, b""), 1002, id="unknown control opcode"),
        pytest.param(server(9, b"", final=False), 1002, id="fragmented control frame"),
        pytest.param(server(9, b"x" * 126), 1002, id="long control frame"),
        pytest.param(server(0, b"x"), 1002, id="continuation of nothing"),
        pytest.param(server(1, b"x", final=False) + server(1, b"y"), 1002, id="message within a message"),
        pytest.param(b"\x82\x7e\x00\x05hello", 1002, id="16-bit length that fits 7 bits"),
        pytest.param(b"\x82\x7f" + struct.pack("!Q", 65535), 1002, id="64-bit length that fits 16 bits"),
        pytest.param(b"\x82\x7f" + struct.pack("!Q", 1 << 63), 1002, id="length with the top bit"),
        pytest.param(server(1, b"\xff"), 1007, id="text that is not UTF-8"),
        pytest.param(server(1, "€".encode()[:2]), 1007, id="text that ends within a character"),
        pytest.param(server(8, b"\x03"), 1002, id="half a close code"),
        pytest.param(server(8, struct.pack("!H", 1005)), 1002, id="close code that may not be sent"),
        pytest.param(server(8, struct.pack("!H", 999)), 1002, id="close code out of range"),
        pytest.param(server(8, struct.pack("!H", 1000) + b"\xff"), 1007, id="close reason that is not UTF-8"),
    ],
)
def test_what_the_rfc_forbids_is_an_error(data: bytes, code: int) -> None:
    with pytest.raises(WebSocketError) as caught:
        FrameReader().feed(data)
    assert caught.value.close_code == code


def test_a_message_over_the_limit_is_refused_by_its_header() -> None:
    assert FrameReader(1000).feed(server(2, b"x" * 1000)) == [b"x" * 1000]
    with pytest.raises(WebSocketError) as caught:
        FrameReader(1000).feed(b"\x82\x7e\x03\xe9")
    assert caught.value.close_code == 1009
    with pytest.raises(WebSocketError):
        FrameReader(1000).feed(b"\x82\x7f" + struct.pack("!Q", 1 << 40))


def test_fragments_together_are_held_to_the_limit() -> None:
    reader = FrameReader(1000)
    reader.feed(server(2, b"x" * 600, final=False))
    with pytest.raises(WebSocketError) as caught:
        reader.feed(server(0, b"x" * 401))
    assert caught.value.close_code == 1009


def test_the_request_is_as_the_rfc_wants_it() -> None:
    text = ws.handshake("/v1/sandboxes/x/exec", KEY, {"X": "y"}).decode()
    assert text.startswith("GET /v1/sandboxes/x/exec HTTP/1.1\r\nHost: ")
    assert text.endswith("\r\n\r\n")
    for line in ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}", "X: y"):
        assert f"\r\n{line}\r\n" in text
    assert len(ws.new_key()) == 24
    with pytest.raises(ValueError, match="line end"):
        ws.handshake("/", KEY, {"X": "y\r\nZ: z"})


def test_an_agreement_is_read_with_what_follows_it() -> None:
    data = ANSWER.encode() + server(1, b"first")
    assert ws.read_head(data[:40]) is None
    reply = ws.read_head(data)
    assert reply is not None
    reply.check(KEY)
    assert reply.rest == server(1, b"first")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("101", "200"),
        (ACCEPT, "AAAA"),
        ("Upgrade: websocket\r\n", ""),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("keep-alive, Upgrade", "keep-alive"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n"),
    ],
)
def test_anything_but_an_agreement_is_an_error(old: str, new: str) -> None:
    reply = ws.read_head(ANSWER.replace(old, new).encode())
    assert reply is not None
    with pytest.raises(WebSocketError):
        reply.check(KEY)


@pytest.mark.parametrize(
    "text", ["SSH-2.0\r\n\r\n", "HTTP/1.1 x\r\n\r\n", "HTTP/1.1 101 S\r\n bad: x\r\n\r\n", "y" * 70000]
)
def test_an_answer_that_is_no_http_is_an_error(text: str) -> None:
    with pytest.raises(WebSocketError):
        ws.read_head(text.encode())


@pytest.mark.parametrize("length", ["", "x", "-1", "9" * 5000, "99999999"])
def test_a_refusal_without_a_sound_length_is_an_error(length: str) -> None:
    reply = ws.HandshakeReply(404, {"content-length": length}, b"")
    with pytest.raises(WebSocketError):
        reply.is_whole(b"")


def test_a_refusals_body_is_as_long_as_it_says() -> None:
    reply = ws.HandshakeReply(404, {"content-length": "3"}, b"")
    assert not reply.is_whole(b"ab")
    assert reply.is_whole(b"abc")
