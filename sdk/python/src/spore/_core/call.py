"""A call to the daemon and the reading of its answer, as values."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Generic, Optional, TypeVar
from urllib.parse import quote, urlencode

import httpx

from .. import errors
from .._version import __version__
from .decode import decode

T = TypeVar("T")

#: Seconds to wait before each further try. A daemon that is started anew is back within them.
PAUSES = (0.1, 0.4, 1.0)
#: Seconds before a stream that ended is opened again.
RECONNECT_SECONDS = 0.5
#: Seconds for a connection to a daemon whose queue is full.
CONNECT_SECONDS = 10.0
USER_AGENT = f"spore-python/{__version__}"


@dataclass(frozen=True)
class Reply:
    """An answer of the daemon."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def raise_for_error(self) -> None:
        """Raise what the answer says went wrong, if something did."""
        if not 200 <= self.status < 300:
            raise refusal(self.status, self.body)

    def json(self) -> Any:
        """Read the body.

        Raises:
            BadAnswerError: It is no JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise errors.BadAnswerError(f"the daemon's answer is no JSON: {error}", status=self.status) from error


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call.

    Attributes:
        read: Makes of a good answer what it means.
        again: Whether the same call may be made again when it is not known what became of it.
        slow: Whether the daemon may take its time: it waits for a guest.
        file: The body is this file.
    """

    method: str
    path: str
    read: Callable[[Reply], T]
    query: Mapping[str, str] = field(default_factory=dict)
    body: Optional[bytes] = None
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Optional[Path] = None
    again: bool = True
    slow: bool = False

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path

    def settle(self, reply: Reply, lost_before: bool) -> T:
        """Make of an answer what it means, or raise what went wrong.

        Args:
            reply: The answer.
            lost_before: Whether the same call was made before, and may have been carried out.
        """
        if not (lost_before and self.method == "DELETE" and reply.status == 404):
            reply.raise_for_error()
        return self.read(reply)

    def timeout(self, seconds: Optional[float]) -> httpx.Timeout:
        """Give the time limits of the call, with a client's own for those that are answered at once."""
        return httpx.Timeout(seconds, connect=CONNECT_SECONDS, pool=None, read=None if self.slow else seconds)


def read_as(kind: type[T]) -> Callable[[Reply], T]:
    """Read an object of a data class."""
    return lambda reply: decode(kind, reply.json())


def read_list(kind: type[T], key: str) -> Callable[[Reply], list[T]]:
    """Read the list that stands under `key`."""

    def read(reply: Reply) -> list[T]:
        found = reply.json()
        items = found.get(key) if isinstance(found, dict) else None
        if not isinstance(items, list):
            raise errors.BadAnswerError(f"{key} should be a list in the answer")
        return [decode(kind, item, f"{key}[{number}]") for number, item in enumerate(items)]

    return read


def read_nothing(reply: Reply) -> None:
    """Read an answer that says nothing but that it was done."""


def read_text(reply: Reply) -> str:
    """Read text."""
    return reply.body.decode("utf-8", "replace")


def refusal(status: int, body: bytes) -> errors.SporeError:
    """Make the exception that the answer to a call that failed says."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if isinstance(found, dict) and "error" in found:
        return errors.from_body(found["error"], status)
    return errors.BadAnswerError(f"the daemon answered {status} without saying why: {body!r:.200}", status=status)


def segment(text: str) -> str:
    """Quote an id or a name for a path.

    Raises:
        ValueError: It could not stand there as itself.
    """
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is no name or id")
    return quote(text, safe="")


def json_body(value: Mapping[str, Any]) -> bytes:
    """Write a request's body; fields that are `None` are left out.

    Raises:
        ValueError: It has text with half a character, or a number that is none.
    """
    given = {key: item for key, item in value.items() if item is not None}
    return json.dumps(given, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode("utf-8")


JSON_HEADERS = {"Content-Type": "application/json"}


def once_headers() -> dict[str, str]:
    """Make the headers of a call that makes something: with a new key, so that it can be made again safely."""
    return {**JSON_HEADERS, "Idempotency-Key": uuid.uuid4().hex}


def translated(error: httpx.TransportError, socket_path: str) -> errors.SporeError:
    """Say in our words what a transport's error means."""
    if isinstance(error, httpx.ConnectError):
        return errors.DaemonUnreachableError(f"no daemon answers at {socket_path}: {error}")
    if isinstance(error, httpx.ConnectTimeout):
        return errors.DaemonUnreachableError(f"the daemon at {socket_path} takes no connection")
    if isinstance(error, httpx.TimeoutException):
        return errors.RequestTimeoutError("the daemon did not answer in time")
    return errors.ConnectionLostError(f"the connection to the daemon was lost: {str(error) or type(error).__name__}")


class Attempts:
    """Counts the tries of one call, and decides about another."""

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._pauses: Iterator[float] = iter(PAUSES)
        #: Whether an earlier try may have been carried out.
        self.lost = False

    def pause_after(self, error: errors.SporeError) -> float:
        """Give the seconds to wait before the next try.

        Raises:
            SporeError: There is to be none: this is what went wrong.
        """
        lost = isinstance(error, errors.ConnectionLostError)
        if not (isinstance(error, errors.DaemonUnreachableError) or (lost and self._call.again)):
            raise error
        self.lost = self.lost or lost
        pause = next(self._pauses, None)
        if pause is None:
            raise error
        return pause
