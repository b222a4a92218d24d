"""The asynchronous half's connections: HTTP by httpx, and WebSockets, on asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import httpx

from ._core import websocket as ws
from ._core.call import CONNECT_SECONDS, USER_AGENT, Attempts, Call, Reply, refusal, translated
from ._core.sse import ServerSentEvent, SseParser
from .errors import BadAnswerError, ConnectionLostError, DaemonUnreachableError

T = TypeVar("T")

#: A callback: a function, or a coroutine function, which is waited for.
Listener = Callable[[T], Union[object, Awaitable[object]]]

_RECEIVE_BYTES = 256 << 10


async def tell(listener: Optional[Listener[T]], what: T) -> None:
    """Call a callback, if there is one."""
    if listener is not None:
        waiting = listener(what)
        if isinstance(waiting, Awaitable):
            await waiting


@asynccontextmanager
async def aclosing(generator: AsyncGenerator[T, None]) -> AsyncIterator[AsyncGenerator[T, None]]:
    """Close a generator at the end; Python 3.10 has this in contextlib."""
    try:
        yield generator
    finally:
        await generator.aclose()


class AsyncWire:
    """The way to one daemon, for the tasks of one event loop."""

    def __init__(self, socket_path: str, timeout: Optional[float], keep_alive: bool = True) -> None:
        self.socket_path = socket_path
        self._timeout = timeout
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32 if keep_alive else 0)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket_path, limits=limits),
            base_url="http://spore",
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def run(self, call: Call[T]) -> T:
        """Make a call and read its answer."""
        attempts = Attempts(call)
        while True:
            try:
                async with AsyncExitStack() as stack:
                    response = await self._open(call, stack)
                    reply = Reply(response.status_code, response.headers, await response.aread())
            except httpx.TransportError as error:
                await asyncio.sleep(attempts.pause_after(translated(error, self.socket_path)))
            else:
                return call.settle(reply, attempts.lost)

    async def body(self, call: Call[Any]) -> AsyncGenerator[bytes, None]:
        """Make a call and give its answer's body as it comes. One that breaks off is not taken up again."""
        attempts = Attempts(call)
        async with AsyncExitStack() as stack:
            while True:
                try:
                    response = await self._open(call, stack)
                    if response.status_code >= 300:
                        raise refusal(response.status_code, await response.aread())
                    break
                except httpx.TransportError as error:
                    await asyncio.sleep(attempts.pause_after(translated(error, self.socket_path)))
            try:
                async for chunk in response.aiter_raw():
                    yield chunk
            except httpx.TransportError as error:
                raise translated(error, self.socket_path) from error

    async def events(self, call: Call[Any]) -> AsyncGenerator[ServerSentEvent, None]:
        """Make a call whose answer is a stream of events."""
        parser = SseParser()
        async with aclosing(self.body(call)) as body:
            async for chunk in body:
                for event in parser.feed(chunk):
                    yield event

    async def _open(self, call: Call[Any], stack: AsyncExitStack) -> httpx.Response:
        headers = dict(call.headers)
        content: Union[bytes, AsyncIterator[bytes], None] = call.body
        if call.file is not None:
            headers["Content-Length"] = str((await asyncio.to_thread(call.file.stat)).st_size)
            content = _file_pieces(call.file)
        return await stack.enter_async_context(
            self._http.stream(
                call.method,
                call.target,
                content=content,
                headers=headers,
                timeout=call.timeout(self._timeout),
            )
        )


async def _file_pieces(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, _RECEIVE_BYTES):
            yield piece
    finally:
        file.close()


class AsyncWebSocket:
    """An open WebSocket. One task may receive while others send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = ws.FrameReader()
        self._arrived: deque[ws.Message] = deque()
        self._draining = asyncio.Lock()

    @classmethod
    async def open(cls, socket_path: str, target: str) -> AsyncWebSocket:
        """Open a WebSocket."""
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(socket_path), CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise DaemonUnreachableError(f"no daemon answers at {socket_path}: {error}") from error
        self = cls(reader, writer)
        try:
            await asyncio.wait_for(self._handshake(target), CONNECT_SECONDS)
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, (OSError, asyncio.TimeoutError)):
                raise _lost(error) from error
            if isinstance(error, ws.WebSocketError):
                raise BadAnswerError(f"the daemon opened no stream: {error}") from error
            raise
        return self

    async def _handshake(self, target: str) -> None:
        key = ws.new_key()
        self._writer.write(ws.handshake(target, key, {"User-Agent": USER_AGENT}))
        received = b""
        reply = None
        while reply is None:
            received += await self._receive()
            reply = ws.read_head(received)
        if reply.status != 101:
            body = reply.rest
            while not reply.is_whole(body):
                body += await self._receive()
            raise refusal(reply.status, body)
        reply.check(key)
        self._take(reply.rest)

    async def send(self, message: Union[str, bytes]) -> None:
        """Send a message; waits while the other side does not take it.

        Raises:
            ConnectionLostError: The connection has ended.
        """
        try:
            self._writer.write(ws.message_frame(message))
            # Before Python 3.11 only one task may wait here.
            async with self._draining:
                await self._writer.drain()
        except OSError as error:
            raise _lost(error) from error

    async def receive(self) -> ws.Message:
        """Wait for a message.

        Raises:
            ConnectionLostError: The connection has ended.
            BadAnswerError: The other side breaks the protocol.
        """
        while not self._arrived:
            try:
                self._take(await self._receive())
            except OSError as error:
                raise _lost(error) from error
            except ws.WebSocketError as error:
                self.close(error.close_code)
                raise BadAnswerError(f"the daemon's stream: {error}") from error
        return self._arrived.popleft()

    def close(self, code: int = 1000) -> None:
        """Close it, without waiting for the other side's word on that, or for what it has not taken."""
        if self._writer.is_closing():
            return
        transport = self._writer.transport
        if transport.get_write_buffer_size() == 0:
            self._writer.write(ws.frame(ws.Opcode.CLOSE, ws.close_payload(code)))
            self._writer.close()
        else:
            transport.abort()

    async def _receive(self) -> bytes:
        data = await self._reader.read(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the daemon hung up")
        return data

    def _take(self, data: bytes) -> None:
        self._arrived += self._frames.feed(data)
        if self._frames.replies:
            # Pongs: small, and the buffer takes them without waiting.
            self._writer.write(bytes(self._frames.replies))
            self._frames.replies.clear()


def _lost(error: BaseException) -> ConnectionLostError:
    return ConnectionLostError(f"the connection to the daemon was lost: {str(error) or type(error).__name__}")
