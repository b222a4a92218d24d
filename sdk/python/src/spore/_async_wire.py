"""The asynchronous half's connections: HTTP by httpx, and WebSockets, on asyncio."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
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
    """An open WebSocket. One task may receive while others send.

    On a bare socket: asyncio's streams forget what arrived when they cannot send, and a command that has ended does not
    read its input.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._frames = ws.FrameReader()
        self._arrived: deque[ws.Message] = deque()
        self._sending = asyncio.Lock()
        self._busy = 0
        self._closing = False

    @classmethod
    async def open(cls, socket_path: str, target: str) -> AsyncWebSocket:
        """Open a WebSocket."""
        self = cls()
        try:
            try:
                connecting = asyncio.get_running_loop().sock_connect(self._socket, socket_path)
                await asyncio.wait_for(connecting, CONNECT_SECONDS)
            except (OSError, asyncio.TimeoutError) as error:
                raise DaemonUnreachableError(f"no daemon answers at {socket_path}: {error}") from error
            try:
                await asyncio.wait_for(self._handshake(target), CONNECT_SECONDS)
            except (OSError, asyncio.TimeoutError) as error:
                raise _lost(error) from error
            except ws.WebSocketError as error:
                raise BadAnswerError(f"the daemon opened no stream: {error}") from error
        except BaseException:
            self._socket.close()
            raise
        return self

    async def _handshake(self, target: str) -> None:
        key = ws.new_key()
        await self._send(ws.handshake(target, key, {"User-Agent": USER_AGENT}))
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
        self._arrived += self._frames.feed(reply.rest)

    async def send(self, message: Union[str, bytes]) -> None:
        """Send a message; waits while the other side does not take it. Being cancelled closes the WebSocket.

        Raises:
            ConnectionLostError: The connection has ended.
        """
        async with self._sending:
            try:
                await self._send(self._frames.take_replies() + ws.message_frame(message))
            except OSError as error:
                raise _lost(error) from error
            except asyncio.CancelledError:
                # Half a frame is of no use to anyone.
                self.close()
                raise

    async def receive(self) -> ws.Message:
        """Wait for a message.

        Raises:
            ConnectionLostError: The connection has ended.
            BadAnswerError: The other side breaks the protocol.
        """
        while not self._arrived:
            try:
                self._arrived += self._frames.feed(await self._receive())
            except OSError as error:
                raise _lost(error) from error
            except ws.WebSocketError as error:
                self.close(error.close_code)
                raise BadAnswerError(f"the daemon's stream: {error}") from error
            self._say(b"")
        return self._arrived.popleft()

    def close(self, code: int = 1000) -> None:
        """Close it, without waiting for the other side's word on that."""
        if self._closing:
            return
        self._closing = True
        self._say(ws.frame(ws.Opcode.CLOSE, ws.close_payload(code)))
        with suppress(OSError):
            # Wakes whoever sends or receives; closing alone would not.
            self._socket.shutdown(socket.SHUT_RDWR)
        if not self._busy:
            self._socket.close()

    def _say(self, frame: bytes) -> None:
        """Send pongs, and this, as far as it goes without waiting. What is left goes before the next message."""
        replies = self._frames.replies
        replies += frame
        if replies and not self._sending.locked():
            with suppress(OSError):
                del replies[: self._socket.send(replies)]

    async def _receive(self) -> bytes:
        self._check_open()
        with self._using():
            data = await asyncio.get_running_loop().sock_recv(self._socket, _RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the daemon hung up")
        return data

    async def _send(self, data: bytes) -> None:
        self._check_open()
        with self._using():
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def _check_open(self) -> None:
        if self._closing:
            raise ConnectionResetError("the stream was closed")

    @contextmanager
    def _using(self) -> Iterator[None]:
        """See to it that the socket stays open while the event loop watches it."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._closing and not self._busy:
                self._socket.close()


def _lost(error: BaseException) -> ConnectionLostError:
    return ConnectionLostError(f"the connection to the daemon was lost: {str(error) or type(error).__name__}")
