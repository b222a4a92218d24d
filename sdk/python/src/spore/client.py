"""A host, as programs see it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any, Callable, ClassVar, Optional, Union

from ._core import calls, place
from ._core.build_log import BuildLines, read_build_message
from ._core.call import RECONNECT_SECONDS, Call
from ._sync_wire import Wire
from .errors import ConnectionLostError, SporeError
from .image import Image, manifest_of
from .models import Build, BuildMessage, BuildNetworkSpec, CheckpointInfo, Event, HostInfo, ImageInfo


class Client:
    """The way to a host's daemon. Threads may share one; connections are opened as they are needed.

    A call that finds no daemon, or whose connection is lost, is made again for a second or two where that is safe: an
    idempotency key sees to it that what it makes is made once. A command is never run twice.

    Args:
        socket_path: Path of the daemon's socket. Default: the environment's SPORE_SOCKET, else
            `/run/spore/spore.sock`.
        timeout: Seconds to wait for the answer to calls that the daemon answers at once; `None`: for ever. Calls that
            wait for a guest have only the daemon's limits.

    All methods raise a `SporeError`: `DaemonUnreachableError` where there is no daemon, and what their own
    documentation names.
    """

    _shared: ClassVar[dict[tuple[int, str], Client]] = {}
    _sharing = threading.Lock()

    def __init__(
        self,
        socket_path: Union[str, os.PathLike[str], None] = None,
        *,
        timeout: Optional[float] = place.DEFAULT_TIMEOUT,
    ) -> None:
        self._wire = Wire(place.socket_path(socket_path), timeout)

    @classmethod
    def shared(cls) -> Client:
        """Give the client that is used where none is given: one a process and socket path."""
        # A child of fork(2) may not use its parent's connections.
        key = (os.getpid(), place.socket_path(None))
        with cls._sharing:
            if key not in cls._shared:
                cls._shared[key] = cls()
            return cls._shared[key]

    @property
    def socket_path(self) -> str:
        """Path of the daemon's socket."""
        return self._wire.socket_path

    def close(self) -> None:
        """Close all connections."""
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Images and builds.

    def build_image(
        self,
        image: Union[Image, Mapping[str, Any]],
        *,
        on_log: Optional[Callable[[str], object]] = None,
        on_message: Optional[Callable[[BuildMessage], object]] = None,
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
        return self._followed(call, on_log, on_message)

    def start_build(
        self,
        image: Union[Image, Mapping[str, Any]],
        *,
        no_cache: bool = False,
        step_timeout_seconds: Optional[int] = None,
        network: BuildNetworkSpec = "auto",
    ) -> str:
        """Begin a build that goes on by itself, also when this program ends.

        Returns:
            The build's id, for `get_build`, `follow_build` and `cancel_build`.
        """
        call = calls.start_build(
            manifest_of(image),
            no_cache=no_cache,
            step_timeout_seconds=step_timeout_seconds,
            network=network,
        )
        return self._wire.run(call)

    def get_build(self, build_id: str) -> Build:
        """Look at a build. It is known for an hour after its end.

        Raises:
            NotFoundError: There is none.
        """
        return self._wire.run(calls.get_build(build_id))

    def follow_build(
        self,
        build_id: str,
        *,
        on_log: Optional[Callable[[str], object]] = None,
        on_message: Optional[Callable[[BuildMessage], object]] = None,
    ) -> ImageInfo:
        """Hear all that a build says, from its beginning, and wait for its image.

        Raises:
            NotFoundError: There is no such build.
            BuildFailedError: A step failed.
            SporeError: It came to nothing otherwise.
        """
        return self._followed(calls.follow_build(build_id), on_log, on_message)

    def _followed(
        self,
        call: Call[None],
        on_log: Optional[Callable[[str], object]],
        on_message: Optional[Callable[[BuildMessage], object]],
    ) -> ImageInfo:
        lines = BuildLines()
        with closing(self._wire.events(call)) as events:
            for event in events:
                said = read_build_message(event)
                for line in lines.take(said):
                    if on_log is not None:
                        on_log(line)
                if isinstance(said, SporeError):
                    raise said
                if on_message is not None:
                    on_message(said)
                if said.image is not None:
                    return said.image
        raise ConnectionLostError("the build's stream ended before the build did; build it again to go on")

    def cancel_build(self, build_id: str) -> None:
        """Cancel a build.

        Raises:
            NotFoundError: There is none.
        """
        self._wire.run(calls.cancel_build(build_id))

    def list_images(self) -> list[ImageInfo]:
        """List all images, the newest first."""
        return self._wire.run(calls.list_images())

    def get_image(self, image: str) -> ImageInfo:
        """Look at an image.

        Args:
            image: A name, an id, or 4 and more digits of one.

        Raises:
            NotFoundError: There is none.
        """
        return self._wire.run(calls.get_image(image))

    def delete_image(self, image: str) -> None:
        """Delete an image. Sandboxes of it run on.

        Raises:
            NotFoundError: There is none.
        """
        self._wire.run(calls.delete_image(image))

    # Checkpoints of sandboxes are made by `Sandbox.checkpoint`.

    def list_checkpoints(self) -> list[CheckpointInfo]:
        """List all checkpoints, the newest first."""
        return self._wire.run(calls.list_checkpoints())

    def get_checkpoint(self, checkpoint: str) -> CheckpointInfo:
        """Look at a checkpoint, by name or id.

        Raises:
            NotFoundError: There is none.
        """
        return self._wire.run(calls.get_checkpoint(checkpoint))

    def delete_checkpoint(self, checkpoint: str) -> None:
        """Delete a checkpoint, by name or id. Sandboxes of it run on.

        Raises:
            NotFoundError: There is none.
            ConflictError: It is an image's, and goes with that.
        """
        self._wire.run(calls.delete_checkpoint(checkpoint))

    # The host.

    def host(self) -> HostInfo:
        """Look at the host: its memory and what of it is promised, what is there, versions."""
        return self._wire.run(calls.host())

    def drain(self, draining: bool = True) -> HostInfo:
        """Have the host refuse new sandboxes and builds, or take them again. What runs goes on."""
        return self._wire.run(calls.drain(draining))

    def events(self, last_event_id: Optional[int] = None) -> Generator[Event, None, None]:
        """Follow what happens on the host, without end.

        A connection that is lost is opened again, and goes on after the last event that came. A daemon that stays away
        is a `DaemonUnreachableError`.

        Args:
            last_event_id: Begin after this one. Default: with what happens from now on.
        """
        while True:
            try:
                with closing(self._wire.events(calls.events(last_event_id))) as events:
                    for item in events:
                        event = calls.read_event(item.data)
                        last_event_id = event.id
                        yield event
            except ConnectionLostError:
                pass
            time.sleep(RECONNECT_SECONDS)

    def metrics(self) -> str:
        """Read the daemon's metrics, in Prometheus' text format."""
        return self._wire.run(calls.metrics())

    def is_healthy(self) -> bool:
        """Ask whether the daemon answers."""
        return self._wire.run(calls.healthz()).strip() == "ok"

    def openapi(self) -> dict[str, Any]:
        """Read the daemon's description of its interface, OpenAPI 3.1."""
        return self._wire.run(calls.openapi())
