"""Commands that run, as one talks with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional, Union

from ._core import command as commands
from ._core.command import StdinStream
from ._sync_wire import WebSocket
from .errors import ConnectionLostError
from .models import ExecOutput, ExecResult


class ExecStream:
    """A command that runs. Iterate over what it writes, or `wait` for its end.

    What is sent to a command that has ended is a `ConnectionLostError`; its output and result can still be read.
    One thread may read while others send. Closing it kills the command; so does the end of a `with`.

    Attributes:
        result: How it ended, once it did. What it wrote is not in it.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.result: Optional[ExecResult] = None

    @classmethod
    def start(cls, socket: WebSocket, request: Mapping[str, Any]) -> ExecStream:
        """Begin with an `ExecRequest`."""
        try:
            socket.send(commands.first_message(request))
        except BaseException:
            socket.close()
            raise
        return cls(socket)

    def __enter__(self) -> ExecStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. A command that runs is killed."""
        self._socket.close()

    def __iter__(self) -> Iterator[ExecOutput]:
        """Give what it writes, as it comes, until it has ended.

        Raises:
            GuestRefusedError: There is no such working directory or user.
            ConnectionLostError: The connection ended before it did.
        """
        while self.result is None:
            said = commands.read_message(self._socket.receive())
            if isinstance(said, ExecOutput):
                yield said
            else:
                self.result = said

    def wait(
        self,
        *,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
    ) -> ExecResult:
        """Hear what it writes until it has ended: see `Sandbox.exec_stream`."""
        outputs = commands.Outputs(on_stdout is not None, on_stderr is not None)
        listeners = {"stdout": on_stdout, "stderr": on_stderr}
        for piece in self:
            for stream, text in outputs.take(piece):
                listener = listeners[stream]
                if listener is not None:
                    listener(text)
        for stream, text in outputs.end():
            listener = listeners[stream]
            if listener is not None:
                listener(text)
        return outputs.result(self.result)

    def send_stdin(self, data: Union[str, bytes]) -> None:
        """Write to its standard input. Waits while it does not read."""
        for piece in commands.pieces(data):
            self._socket.send(piece)

    def close_stdin(self) -> None:
        """End its standard input."""
        self._socket.send(commands.stdin_end())

    def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size."""
        self._socket.send(commands.resize(rows, cols))

    def send_signal(self, number: int) -> None:
        """Send its process group a signal, by Linux's number: `signal.SIGINT`."""
        self._socket.send(commands.send_signal(number))


class Feeder:
    """Gives a stream its input from a thread of its own, so that output is heard meanwhile."""

    def __init__(self, stream: ExecStream, stdin: Optional[StdinStream]) -> None:
        self._stream = stream
        self._stdin: StdinStream = b"" if stdin is None else stdin
        self._failed: Optional[BaseException] = None
        # A daemon thread: it may wait for a terminal for ever.
        threading.Thread(target=self._run, name="spore-stdin", daemon=True).start()

    def _run(self) -> None:
        try:
            for piece in commands.pieces(self._stdin):
                self._stream.send_stdin(piece)
            self._stream.close_stdin()
        except ConnectionLostError:
            pass  # The command has ended without reading all.
        except BaseException as error:
            self._failed = error
            self._stream.close()

    def raise_own(self) -> None:
        """Raise what the input failed of, if that ended the stream."""
        if self._failed is not None:
            raise self._failed
