"""Commands: how they are asked for, and what is said while they run."""

from __future__ import annotations

import base64
import codecs
import dataclasses
import json
import shlex
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional, Union

from ..errors import BadAnswerError, CommandFailedError, ConnectionLostError, from_body
from ..models import ExecOutput, ExecResult
from .decode import decode
from .websocket import Closed, Message

#: A line for `/bin/sh -c`, or a program and its arguments.
Command = Union[str, Sequence[str]]

#: What a command reads: all at once, or in pieces.
StdinStream = Union[str, bytes, Iterable[bytes]]

#: Likewise, for programs on asyncio.
AsyncStdinStream = Union[StdinStream, AsyncIterable[bytes]]

#: What a stream keeps of each output that nobody listens to; as much as the daemon keeps for a call.
KEPT_BYTES = 8 << 20
#: The size of the pieces in which input is sent.
PIECE_BYTES = 32 << 10


def argv(command: Command) -> list[str]:
    """Give a command as program and arguments."""
    if isinstance(command, str):
        return ["/bin/sh", "-c", command]
    words = list(command)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"a command is text or a list of texts, and {word!r} is none")
    return words


def exec_request(
    command: Command,
    *,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[str] = None,
    user: Optional[str] = None,
    stdin: Union[str, bytes, None] = None,
    timeout_seconds: Optional[int] = None,
    tty: Optional[tuple[int, int]] = None,
) -> dict[str, Any]:
    """Make an `ExecRequest`. What is read and written goes as base64: a command's bytes need not be text."""
    request: dict[str, Any] = {"cmd": argv(command), "encoding": "base64"}
    if env is not None:
        request["env"] = dict(env)
    if stdin is not None:
        data = stdin.encode("utf-8") if isinstance(stdin, str) else stdin
        request["stdin"] = base64.b64encode(data).decode("ascii")
    if tty is not None:
        request["tty"] = {"rows": tty[0], "cols": tty[1]}
    for key, value in (("cwd", cwd), ("user", user), ("timeoutSeconds", timeout_seconds)):
        if value is not None:
            request[key] = value
    return request


def checked(result: ExecResult, command: Command, check: bool) -> ExecResult:
    """Give the result back, or raise `CommandFailedError` for one that is not good, if that is to be checked."""
    if not check or result.ok:
        return result
    shown = command if isinstance(command, str) else shlex.join(command)
    how = "ran out of time" if result.timed_out else f"ended with exit code {result.exit_code}"
    if result.oom_kills:
        how += ", and was short of memory"
    words = result.stderr.strip()[-2000:]
    raise CommandFailedError(f"`{shown:.200}` {how}" + (f": {words}" if words else ""), result=result)


def first_message(request: Mapping[str, Any]) -> str:
    """Write a request as the first message of a stream."""
    return json.dumps(request)


def stdin_end() -> str:
    """Say that there is no more input."""
    return json.dumps({"type": "stdinEnd"})


def resize(rows: int, cols: int) -> str:
    """Say that the terminal has another size."""
    return json.dumps({"type": "resize", "rows": rows, "cols": cols})


def send_signal(number: int) -> str:
    """Say that the command's process group should get a signal."""
    return json.dumps({"type": "signal", "signal": int(number)})


def pieces(stdin: StdinStream) -> Iterator[bytes]:
    """Cut input into messages."""
    if isinstance(stdin, str):
        stdin = stdin.encode("utf-8")
    for block in [stdin] if isinstance(stdin, (bytes, bytearray, memoryview)) else stdin:
        for start in range(0, len(block), PIECE_BYTES):
            yield bytes(block[start : start + PIECE_BYTES])


def read_message(message: Message) -> Union[ExecOutput, ExecResult]:
    """Read what the daemon says in a stream.

    Raises:
        SporeError: It says that something went wrong, or nothing that is understood.
    """
    if isinstance(message, Closed):
        reason = f": {message.reason}" if message.reason else ""
        raise ConnectionLostError(f"the stream was closed ({message.code}) before the command ended{reason}")
    if isinstance(message, bytes):
        if message[:1] not in (b"\1", b"\2"):
            raise BadAnswerError("output of a stream that is neither standard output nor standard error")
        return ExecOutput("stdout" if message[0] == 1 else "stderr", message[1:])
    try:
        report = json.loads(message)
    except ValueError as error:
        raise BadAnswerError(f"a message of the stream is no JSON: {error}") from error
    kind = report.get("type") if isinstance(report, dict) else None
    if kind == "exit":
        return decode(ExecResult, report)
    if kind == "error":
        raise from_body(report)
    raise BadAnswerError(f"a message of an unknown kind in the stream: {message:.200}")


class Outputs:
    """A command's two outputs: text for whoever listens to one, piece by piece, or kept for the result.

    Args:
        hear_stdout: Whether somebody listens to standard output.
        hear_stderr: Whether somebody listens to standard error.
    """

    def __init__(self, hear_stdout: bool, hear_stderr: bool) -> None:
        heard = {"stdout": hear_stdout, "stderr": hear_stderr}
        new = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: new("replace") for stream, hear in heard.items() if hear}
        self._kept = {stream: bytearray() for stream in heard}
        self._truncated = False

    def take(self, piece: ExecOutput) -> list[tuple[str, str]]:
        """Take a piece, and give what is to be heard, by stream; maybe nothing yet."""
        if piece.stream in self._decoders:
            return self._heard(piece.stream, self._decoders[piece.stream].decode(piece.data))
        kept = self._kept[piece.stream]
        room = KEPT_BYTES - len(kept)
        kept += piece.data[:room]
        self._truncated = self._truncated or len(piece.data) > room
        return []

    def end(self) -> list[tuple[str, str]]:
        """Give what is to be heard at the end: characters that were begun."""
        return [
            heard
            for stream, decoder in self._decoders.items()
            for heard in self._heard(stream, decoder.decode(b"", True))
        ]

    def result(self, result: Optional[ExecResult]) -> ExecResult:
        """Put what was kept into the result."""
        if result is None:
            raise BadAnswerError("the stream ended without a result")
        return dataclasses.replace(
            result,
            stdout_bytes=bytes(self._kept["stdout"]),
            stderr_bytes=bytes(self._kept["stderr"]),
            truncated=self._truncated or result.truncated,
        )

    @staticmethod
    def _heard(stream: str, text: str) -> list[tuple[str, str]]:
        return [(stream, text)] if text else []
