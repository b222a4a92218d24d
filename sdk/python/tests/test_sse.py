"""Server-sent events, in any pieces."""

from __future__ import annotations

import itertools

import pytest

from spore import BadAnswerError
from spore._core import sse
from spore._core.sse import ServerSentEvent, SseParser

STREAM = (
    "\ufeff: a comment\n"
    "id: 7\r\n"
    "event: output\r\n"
    'data: {"text": "Grüße\u2028 😀"}\r\n'
    "\r\n"
    "data: two\rdata:lines\r\r"
    "event: nothing\n\n"
    "retry: 10\nunknown: x\ndata\n\n"
    "id: 8\ndata:  indented\nid: a\0b\n\n"
    "data: never finished\n"
).encode()

EVENTS = [
    ServerSentEvent("output", '{"text": "Grüße\u2028 😀"}', "7"),
    ServerSentEvent("message", "two\nlines", "7"),
    ServerSentEvent("message", "", "7"),
    ServerSentEvent("message", " indented", "8"),
]


def parsed(*chunks: bytes) -> list[ServerSentEvent]:
    parser = SseParser()
    return list(itertools.chain.from_iterable(parser.feed(chunk) for chunk in chunks))


def test_a_stream_in_one_piece() -> None:
    assert parsed(STREAM) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_a_stream_in_pieces_of_one_size(size: int) -> None:
    assert parsed(*(STREAM[start : start + size] for start in range(0, len(STREAM), size))) == EVENTS


def test_a_stream_cut_once_anywhere() -> None:
    for cut in range(len(STREAM) + 1):
        assert parsed(STREAM[:cut], STREAM[cut:]) == EVENTS, cut


def test_an_event_is_given_as_soon_as_it_is_complete() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r\n\r") == [ServerSentEvent("message", "a", None)]
    assert parser.feed(b"\ndata: b\n") == []
    assert parser.feed(b"\n") == [ServerSentEvent("message", "b", None)]


def test_an_event_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = SseParser()
    for _ in range(50):
        parser.feed(b"data: short\n\n")
    for _ in range(10):
        parser.feed(b"data: 1234")
    with pytest.raises(BadAnswerError):
        parser.feed(b"x")


def test_bytes_that_are_not_utf8_do_not_end_the_stream() -> None:
    assert parsed(b"data: a\xffb\n\n") == [ServerSentEvent("message", "a\ufffdb", None)]
