"""The synchronous half's connections: HTTP by httpx, and WebSockets."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from typing import Any, Optional, TypeVar, Union

import httpx

from ._core import websocket as ws
from ._core.call import CONNECT_SECONDS, USER_AGENT, Attempts, Call, Reply, refusal, translated
from ._core.sse import ServerSentEvent, SseParser
from .errors import BadAnswerError, ConnectionLostError, DaemonUnreachableError

T = TypeVar("T")

_RECEIVE_BYTES = 256 << 10


class Wire:
    """The way to one daemon. Threads may share it."""

    def __init__(self, socket_path: str, timeout: Optional[float]) -> None:
        self.socket_path = socket_path
        self._timeout = timeout
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket_path, limits=limits),
            base_url="http://spore",
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def run(self, call: Call[T]) -> T:
        """Make a call and read its answer."""
        attempts = Attempts(call)
        while True:
            try:
                with ExitStack() as stack:
                    response = self._open(call, stack)
                    reply = Reply(response.status_code, response.headers, response.read())
            except httpx.TransportError as error:
                time.sleep(attempts.pause_after(translated(error, self.socket_path)))
            else:
                return call.settle(reply, attempts.lost)

    def body(self, call: Call[Any]) -> Generator[bytes, None, None]:
        """Make a call and give its answer's body as it comes. One that breaks off is not taken up again."""
        attempts = Attempts(call)
        with ExitStack() as stack:
            while True:
                try:
                    response = self._open(call, stack)
                    if response.status_code >= 300:
                        raise refusal(response.status_code, response.read())
                    break
                except httpx.TransportError as error:
                    time.sleep(attempts.pause_after(translated(error, self.socket_path)))
            try:
                yield from response.iter_raw()
            except httpx.TransportError as error:
                raise translated(error, self.socket_path) from error

    def events(self, call: Call[Any]) -> Generator[ServerSentEvent, None, None]:
        """Make a call whose answer is a stream of events."""
        parser = SseParser()
        with closing(self.body(call)) as body:
            for chunk in body:
                yield from parser.feed(chunk)

    def _open(self, call: Call[Any], stack: ExitStack) -> httpx.Response:
        file = None if call.file is None else stack.enter_context(call.file.open("rb"))
        return stack.enter_context(
            self._http.stream(
                call.method,
                call.target,
                content=call.body if file is None else file,
                headers=dict(call.headers),
                timeout=call.timeout(self._timeout),
            )
        )


class WebSocket:
    """An open WebSocket. One thread may receive while others send."""

    def __init__(self, socket_path: str, target: str) -> None:
        self._frames = ws.FrameReader()
        self._arrived: deque[ws.Message] = deque()
        self._sending = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(CONNECT_SECONDS)
            try:
                self._socket.connect(socket_path)
            except OSError as error:
                raise DaemonUnreachableError(f"no daemon answers at {socket_path}: {error}") from error
            try:
                self._handshake(target)
            except OSError as error:
                raise _lost(error) from error
            except ws.WebSocketError as error:
                raise BadAnswerError(f"the daemon opened no stream: {error}") from error
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise

    def _handshake(self, target: str) -> None:
        key = ws.new_key()
        self._socket.sendall(ws.handshake(target, key, {"User-Agent": USER_AGENT}))
        received = b""
        reply = None
        while reply is None:
            received += self._receive()
            reply = ws.read_head(received)
        if reply.status != 101:
            body = reply.rest
            while not reply.is_whole(body):
                body += self._receive()
            raise refusal(reply.status, body)
        reply.check(key)
        self._arrived += self._frames.feed(reply.rest)

    def send(self, message: Union[str, bytes]) -> None:
        """Send a message; waits while the other side does not take it.

        Raises:
            ConnectionLostError: The connection has ended.
        """
        with self._sending:
            try:
                self._socket.sendall(self._frames.take_replies() + ws.message_frame(message))
            except OSError as error:
                raise _lost(error) from error

    def receive(self) -> ws.Message:
        """Wait for a message.

        Raises:
            ConnectionLostError: The connection has ended.
            BadAnswerError: The other side breaks the protocol.
        """
        while not self._arrived:
            try:
                self._arrived += self._frames.feed(self._receive())
            except OSError as error:
                raise _lost(error) from error
            except ws.WebSocketError as error:
                self.close(error.close_code)
                raise BadAnswerError(f"the daemon's stream: {error}") from error
            self._say(b"")
        return self._arrived.popleft()

    def close(self, code: int = 1000) -> None:
        """Close it, without waiting for the other side's word on that."""
        if self._socket.fileno() < 0:
            return
        self._say(ws.frame(ws.Opcode.CLOSE, ws.close_payload(code)))
        with suppress(OSError):
            # Wakes a thread that sends or receives; closing alone would not.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _say(self, frame: bytes) -> None:
        """Send pongs, and this, as far as it goes without waiting. What is left goes before the next message.

        Whoever receives may not wait to send, or nobody takes what comes.
        """
        self._frames.replies += frame
        if self._frames.replies and self._sending.acquire(blocking=False):
            try:
                sent = self._socket.send(self._frames.replies, socket.MSG_DONTWAIT)
                del self._frames.replies[:sent]
            except OSError:
                pass  # Whoever receives finds out.
            finally:
                self._sending.release()

    def _receive(self) -> bytes:
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the daemon hung up")
        return data


def _lost(error: OSError) -> ConnectionLostError:
    return ConnectionLostError(f"the connection to the daemon was lost: {str(error) or type(error).__name__}")
