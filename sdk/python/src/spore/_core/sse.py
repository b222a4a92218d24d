"""Server-sent events (HTML standard, section 9.2) out of bytes that arrive in any pieces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from ..errors import BadAnswerError

#: The most bytes that one event may have. The daemon's are far smaller.
MAX_EVENT_BYTES = 16 << 20

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class ServerSentEvent:
    """An event."""

    #: Its type; `message` where the stream named none.
    event: str
    data: str
    #: The last id that the stream named, here or earlier.
    id: Optional[str] = None


class SseParser:
    """Takes bytes and gives the events that are complete. What is incomplete at the end of a stream is no event."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first_line = True
        self._event = ""
        self._data: list[str] = []
        self._id: Optional[str] = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take what arrived.

        Raises:
            BadAnswerError: An event has more than `MAX_EVENT_BYTES`.
        """
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            # The second half of a CR LF whose first half ended the line already.
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        self._size += len(chunk)
        *lines, rest = _LINE_END.split(chunk)
        events = []
        for line in lines:
            event = self._line(b"".join([*self._partial, line]))
            self._partial.clear()
            if event is not None:
                events.append(event)
        if rest:
            self._partial.append(rest)
        if self._size > MAX_EVENT_BYTES:
            raise BadAnswerError(f"an event in the stream has more than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: bytes) -> Optional[ServerSentEvent]:
        text = line.decode("utf-8", "replace")
        if self._first_line:
            self._first_line = False
            text = text[1:] if text.startswith("\ufeff") else text
        if not text:
            return self._dispatch()
        name, _, value = text.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        # `:` begins a comment, `retry` is for browsers, and other names mean nothing.
        return None

    def _dispatch(self) -> Optional[ServerSentEvent]:
        event, data = self._event, self._data
        self._event, self._data, self._size = "", [], 0
        if not data:
            return None
        return ServerSentEvent(event or "message", "\n".join(data), self._id)
