"""A host, as programs on asyncio see it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Optional, Union
from weakref import WeakKeyDictionary

from ._async_wire import AsyncWire, Listener, aclosing, tell
from ._core import calls, place
from ._core.build_log import BuildLines, read_build_message
from ._core.call import RECONNECT_SECONDS, Call
from .errors import ConnectionLostError, SporeError
from .image import Image, manifest_of
from .models import Build, BuildMessage, BuildNetworkSpec, CheckpointInfo, Event, HostInfo, ImageInfo


class AsyncClient:
    """As `Client`, for the tasks of one asyncio event loop. What is said there of arguments and errors holds here.

    A task that is cancelled hangs up, and that ends what it asked for: a command is killed, a build that nobody else
    wants is cancelled. Sandboxes that were being made are ended behind its back.
    """

    _shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncClient]] = WeakKeyDictionary()

    def __init__(
        self,
        socket_path: Union[str, os.PathLike[str], None] = None,
        *,
        timeout: Optional[float] = place.DEFAULT_TIMEOUT,
        keep_alive: bool = True,
    ) -> None:
        self._wire = AsyncWire(place.socket_path(socket_path), timeout, keep_alive)

    @classmethod
    def shared(cls) -> AsyncClient:
        """Give the client that is used where none is given: one an event loop and socket path.

        It keeps no connection open, so that there is nothing to close at the loop's end.

        Raises:
            RuntimeError: No event loop is running.
        """
        clients = cls._shared.setdefault(asyncio.get_running_loop(), {})
        path = place.socket_path(None)
        if path not in clients:
            clients[path] = cls(path, keep_alive=False)
        return clients[path]

    @property
    def socket_path(self) -> str:
        """Path of the daemon's socket."""
        return self._wire.socket_path

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # Images and builds.

    async def build_image(
        self,
        image: Union[Image, Mapping[str, Any]],
        *,
        on_log: Optional[Listener[str]] = None,
        on_message: Optional[Listener[BuildMessage]] = None,
        no_cache: bool = False,
        step_timeout_seconds: Optional[int] = None,
        network: BuildNetworkSpec = "auto",
    ) -> ImageInfo:
        """Build an image, or find it built already: see `Image.build`. A manifest will do as well."""
        call = calls.build(
            manifest_of(image),
            no_cache=no_cache,
            step_timeout_seconds=step_timeout_seconds,
            network=network,
        )
        return await self._followed(call, on_log, on_message)

    async def start_build(
        self,
        image: Union[Image, Mapping[str, Any]],
        *,
        no_cache: bool = False,
        step_timeout_seconds: Optional[int] = None,
        network: BuildNetworkSpec = "auto",
    ) -> str:
        """Begin a build that goes on by itself: see `Client.start_build`."""
        call = calls.start_build(
            manifest_of(image),
            no_cache=no_cache,
            step_timeout_seconds=step_timeout_seconds,
            network=network,
        )
        return await self._wire.run(call)

    async def get_build(self, build_id: str) -> Build:
        """Look at a build: see `Client.get_build`."""
        return await self._wire.run(calls.get_build(build_id))

    async def follow_build(
        self,
        build_id: str,
        *,
        on_log: Optional[Listener[str]] = None,
        on_message: Optional[Listener[BuildMessage]] = None,
    ) -> ImageInfo:
        """Hear all that a build says, and wait for its image: see `Client.follow_build`."""
        return await self._followed(calls.follow_build(build_id), on_log, on_message)

    async def _followed(
        self,
        call: Call[None],
        on_log: Optional[Listener[str]],
        on_message: Optional[Listener[BuildMessage]],
    ) -> ImageInfo:
        lines = BuildLines()
        async with aclosing(self._wire.events(call)) as events:
            async for event in events:
                said = read_build_message(event)
                for line in lines.take(said):
                    await tell(on_log, line)
                if isinstance(said, SporeError):
                    raise said
                await tell(on_message, said)
                if said.image is not None:
                    return said.image
        raise ConnectionLostError("the build's stream ended before the build did; build it again to go on")

    async def cancel_build(self, build_id: str) -> None:
        """Cancel a build: see `Client.cancel_build`."""
        await self._wire.run(calls.cancel_build(build_id))

    async def list_images(self) -> list[ImageInfo]:
        """List all images, the newest first."""
        return await self._wire.run(calls.list_images())

    async def get_image(self, image: str) -> ImageInfo:
        """Look at an image: see `Client.get_image`."""
        return await self._wire.run(calls.get_image(image))

    async def delete_image(self, image: str) -> None:
        """Delete an image: see `Client.delete_image`."""
        await self._wire.run(calls.delete_image(image))

    # Checkpoints of sandboxes are made by `AsyncSandbox.checkpoint`.

    async def list_checkpoints(self) -> list[CheckpointInfo]:
        """List all checkpoints, the newest first."""
        return await self._wire.run(calls.list_checkpoints())

    async def get_checkpoint(self, checkpoint: str) -> CheckpointInfo:
        """Look at a checkpoint, by name or id: see `Client.get_checkpoint`."""
        return await self._wire.run(calls.get_checkpoint(checkpoint))

    async def delete_checkpoint(self, checkpoint: str) -> None:
        """Delete a checkpoint, by name or id: see `Client.delete_checkpoint`."""
        await self._wire.run(calls.delete_checkpoint(checkpoint))

    # The host.

    async def host(self) -> HostInfo:
        """Look at the host: its memory and what of it is promised, what is there, versions."""
        return await self._wire.run(calls.host())

    async def drain(self, draining: bool = True) -> HostInfo:
        """Have the host refuse new sandboxes and builds, or take them again. What runs goes on."""
        return await self._wire.run(calls.drain(draining))

    async def events(self, last_event_id: Optional[int] = None) -> AsyncGenerator[Event, None]:
        """Follow what happens on the host, without end: see `Client.events`."""
        while True:
            try:
                async with aclosing(self._wire.events(calls.events(last_event_id))) as events:
                    async for item in events:
                        event = calls.read_event(item.data)
                        last_event_id = event.id
                        yield event
            except ConnectionLostError:
                pass
            await asyncio.sleep(RECONNECT_SECONDS)

    async def metrics(self) -> str:
        """Read the daemon's metrics, in Prometheus' text format."""
        return await self._wire.run(calls.metrics())

    async def is_healthy(self) -> bool:
        """Ask whether the daemon answers."""
        return (await self._wire.run(calls.healthz())).strip() == "ok"

    async def openapi(self) -> dict[str, Any]:
        """Read the daemon's description of its interface, OpenAPI 3.1."""
        return await self._wire.run(calls.openapi())
