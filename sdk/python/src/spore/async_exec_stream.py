"""Commands that run, as programs on asyncio talk with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Optional, Union

from ._async_wire import AsyncWebSocket, Listener, tell
from ._core import command as commands
from ._core.command import AsyncStdinStream
from .errors import ConnectionLostError, SporeError
from .models import ExecOutput, ExecResult


class AsyncExecStream:
    """As `ExecStream`, on asyncio. One task may read while others send."""

    def __init__(self, socket: AsyncWebSocket) -> None:
        self._socket = socket
        self.result: Optional[ExecResult] = None

    @classmethod
    async def start(cls, socket: AsyncWebSocket, request: Mapping[str, Any]) -> AsyncExecStream:
        """Begin with an `ExecRequest`."""
        try:
            await socket.send(commands.first_message(request))
        except BaseException:
            socket.close()
            raise
        return cls(socket)

    async def __aenter__(self) -> AsyncExecStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up. A command that runs is killed."""
        self._socket.close()

    async def __aiter__(self) -> AsyncIterator[ExecOutput]:
        """Give what it writes, as it comes, until it has ended.

        Raises:
            GuestRefusedError: It could not be started.
            ConnectionLostError: The connection ended before it did.
        """
        while self.result is None:
            said = commands.read_message(await self._socket.receive())
            if isinstance(said, ExecOutput):
                yield said
            else:
                self.result = said

    async def wait(
        self,
        *,
        on_stdout: Optional[Listener[str]] = None,
        on_stderr: Optional[Listener[str]] = None,
    ) -> ExecResult:
        """Hear what it writes until it has ended: see `Sandbox.exec_stream`."""
        outputs = commands.Outputs(on_stdout is not None, on_stderr is not None)
        listeners = {"stdout": on_stdout, "stderr": on_stderr}
        async for piece in self:
            for stream, text in outputs.take(piece):
                await tell(listeners[stream], text)
        for stream, text in outputs.end():
            await tell(listeners[stream], text)
        return outputs.result(self.result)

    async def send_stdin(self, data: Union[str, bytes]) -> None:
        """Write to its standard input. Waits while it does not read."""
        for piece in commands.pieces(data):
            await self._socket.send(piece)

    async def close_stdin(self) -> None:
        """End its standard input."""
        await self._socket.send(commands.stdin_end())

    async def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size."""
        await self._socket.send(commands.resize(rows, cols))

    async def send_signal(self, number: int) -> None:
        """Send its process group a signal, by Linux's number: `signal.SIGINT`."""
        await self._socket.send(commands.send_signal(number))


@asynccontextmanager
async def fed(stream: AsyncExecStream, stdin: Optional[AsyncStdinStream]) -> AsyncIterator[None]:
    """Give a stream its input from a task of its own, so that output is heard meanwhile."""
    feeding = asyncio.ensure_future(_feed(stream, b"" if stdin is None else stdin))
    try:
        yield
    except SporeError:
        # What the input failed of, if that ended the stream, is what went wrong.
        if feeding.done() and not feeding.cancelled():
            feeding.result()
        raise
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _feed(stream: AsyncExecStream, stdin: AsyncStdinStream) -> None:
    try:
        if isinstance(stdin, AsyncIterable):
            async for block in stdin:
                await stream.send_stdin(block)
        else:
            for piece in commands.pieces(stdin):
                await stream.send_stdin(piece)
        await stream.close_stdin()
    except ConnectionLostError:
        pass  # The command has ended without reading all.
    except BaseException:
        await stream.close()
        raise
