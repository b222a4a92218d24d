"""Sandboxes, for programs on asyncio."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Optional, Union

from ._async_wire import AsyncWebSocket, Listener
from ._core import calls
from ._core import command as commands
from ._core.call import Call
from ._core.calls import Made, MadeSeveral
from ._core.command import AsyncStdinStream, Command
from ._undo import taken_back
from .async_client import AsyncClient
from .async_exec_stream import AsyncExecStream, fed
from .async_files import AsyncFiles
from .errors import NotFoundError
from .image import Image
from .models import (
    CheckpointInfo,
    ExecResult,
    ImageInfo,
    NetworkSpec,
    SandboxInfo,
    Usage,
)


class AsyncSandbox:
    """As `Sandbox`, on asyncio. What is said there of arguments and errors holds here.

    ```python
    async with await AsyncSandbox.create(image="debian-tools", memory_mb=4096) as sandbox:
        print((await sandbox.exec("uname -a")).stdout)
    ```

    Attributes:
        info: What the daemon last said about it; `refresh` asks anew.
        files: Its files.
        first_result: What the command came to that it was made with (`create(exec=...)`).
    """

    def __init__(self, client: AsyncClient, info: SandboxInfo, first_result: Optional[ExecResult] = None) -> None:
        self._client = client
        self.info = info
        self.files = AsyncFiles(client, info.id)
        self.first_result = first_result

    @classmethod
    async def create(
        cls,
        image: Union[Image, ImageInfo, str],
        *,
        memory_mb: Optional[int] = None,
        cpus: Optional[int] = None,
        disk_mb: Optional[int] = None,
        env: Optional[Mapping[str, str]] = None,
        metadata: Optional[Mapping[str, str]] = None,
        timeout_seconds: Optional[int] = None,
        idle_timeout_seconds: Optional[int] = None,
        network: NetworkSpec = "none",
        exec: Optional[Command] = None,
        on_build_log: Optional[Listener[str]] = None,
        client: Optional[AsyncClient] = None,
    ) -> AsyncSandbox:
        """Make a sandbox of an image: see `Sandbox.create`."""
        client = client or AsyncClient.shared()
        call = calls.create_sandbox(
            image=await _image_id(client, image, on_build_log),
            memory_mb=memory_mb,
            cpus=cpus,
            disk_mb=disk_mb,
            env=env,
            metadata=metadata,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            network=network,
            exec=exec,
        )
        return cls._of(client, (await _made(client, call)).made[0])

    @classmethod
    async def create_many(
        cls,
        count: int,
        image: Union[Image, ImageInfo, str, None] = None,
        *,
        checkpoint: Union[CheckpointInfo, str, None] = None,
        memory_mb: Optional[int] = None,
        cpus: Optional[int] = None,
        disk_mb: Optional[int] = None,
        env: Optional[Mapping[str, str]] = None,
        metadata: Optional[Mapping[str, str]] = None,
        timeout_seconds: Optional[int] = None,
        idle_timeout_seconds: Optional[int] = None,
        network: NetworkSpec = "none",
        exec: Optional[Command] = None,
        partial: bool = False,
        on_build_log: Optional[Listener[str]] = None,
        client: Optional[AsyncClient] = None,
    ) -> AsyncSandboxGroup:
        """Make several sandboxes at once; otherwise as `create`: see `Sandbox.create_many`."""
        client = client or AsyncClient.shared()
        call = calls.create_sandbox(
            image=None if image is None else await _image_id(client, image, on_build_log),
            checkpoint=None if checkpoint is None else _checkpoint_id(checkpoint),
            memory_mb=memory_mb,
            cpus=cpus,
            disk_mb=disk_mb,
            env=env,
            metadata=metadata,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            network=network,
            exec=exec,
            count=count,
            partial=partial,
        )
        return AsyncSandboxGroup(client, await _made(client, call))

    @classmethod
    async def from_checkpoint(
        cls,
        checkpoint: Union[CheckpointInfo, str],
        *,
        memory_mb: Optional[int] = None,
        cpus: Optional[int] = None,
        disk_mb: Optional[int] = None,
        env: Optional[Mapping[str, str]] = None,
        metadata: Optional[Mapping[str, str]] = None,
        timeout_seconds: Optional[int] = None,
        idle_timeout_seconds: Optional[int] = None,
        network: NetworkSpec = "none",
        exec: Optional[Command] = None,
        client: Optional[AsyncClient] = None,
    ) -> AsyncSandbox:
        """Make a sandbox of a checkpoint; otherwise as `create`: see `Sandbox.from_checkpoint`."""
        client = client or AsyncClient.shared()
        call = calls.create_sandbox(
            checkpoint=_checkpoint_id(checkpoint),
            memory_mb=memory_mb,
            cpus=cpus,
            disk_mb=disk_mb,
            env=env,
            metadata=metadata,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            network=network,
            exec=exec,
        )
        return cls._of(client, (await _made(client, call)).made[0])

    @classmethod
    async def connect(cls, id: str, *, client: Optional[AsyncClient] = None) -> AsyncSandbox:
        """Find a sandbox that is there: see `Sandbox.connect`."""
        client = client or AsyncClient.shared()
        return cls(client, await client._wire.run(calls.get_sandbox(id)))

    @classmethod
    async def list(
        cls, *, metadata: Optional[Mapping[str, str]] = None, client: Optional[AsyncClient] = None
    ) -> builtins.list[AsyncSandbox]:
        """Find all sandboxes, the newest first; with `metadata`, those that have all of it."""
        client = client or AsyncClient.shared()
        return [cls(client, info) for info in await client._wire.run(calls.list_sandboxes(metadata))]

    @classmethod
    def _of(cls, client: AsyncClient, made: Made) -> AsyncSandbox:
        return cls(client, made.info, made.exec)

    async def __aenter__(self) -> AsyncSandbox:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.kill()

    def __repr__(self) -> str:
        return f"<AsyncSandbox {self.id} {self.info.state}>"

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    # Commands.

    async def exec(
        self,
        command: Command,
        *,
        check: bool = False,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        timeout_seconds: Optional[int] = None,
    ) -> ExecResult:
        """Run a command and wait for its end: see `Sandbox.exec`."""
        request = commands.exec_request(
            command, env=env, cwd=cwd, user=user, stdin=stdin, timeout_seconds=timeout_seconds
        )
        return commands.checked(await self._client._wire.run(calls.run_command(self.id, request)), command, check)

    async def exec_stream(
        self,
        command: Command,
        *,
        on_stdout: Optional[Listener[str]] = None,
        on_stderr: Optional[Listener[str]] = None,
        check: bool = False,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Optional[AsyncStdinStream] = None,
        timeout_seconds: Optional[int] = None,
    ) -> ExecResult:
        """Run a command and hear what it writes while it does: see `Sandbox.exec_stream`."""
        async with (
            await self.exec_interactive(
                command, env=env, cwd=cwd, user=user, timeout_seconds=timeout_seconds
            ) as stream,
            fed(stream, stdin),
        ):
            result = await stream.wait(on_stdout=on_stdout, on_stderr=on_stderr)
        return commands.checked(result, command, check)

    async def exec_interactive(
        self,
        command: Command,
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        timeout_seconds: Optional[int] = None,
        tty: Optional[tuple[int, int]] = None,
    ) -> AsyncExecStream:
        """Start a command, to talk with it: see `Sandbox.exec_interactive`."""
        request = commands.exec_request(command, env=env, cwd=cwd, user=user, timeout_seconds=timeout_seconds, tty=tty)
        socket = await AsyncWebSocket.open(self._client.socket_path, calls.exec_target(self.id))
        return await AsyncExecStream.start(socket, request)

    # Its life.

    async def fork(
        self,
        count: int = 1,
        *,
        memory_mb: Optional[int] = None,
        env: Optional[Mapping[str, str]] = None,
        metadata: Optional[Mapping[str, str]] = None,
        timeout_seconds: Optional[int] = None,
        idle_timeout_seconds: Optional[int] = None,
        network: Optional[NetworkSpec] = None,
        partial: bool = False,
    ) -> AsyncSandboxGroup:
        """Fork it as it runs: see `Sandbox.fork`."""
        call = calls.fork_sandbox(
            self.id,
            count=count,
            memory_mb=memory_mb,
            env=env,
            metadata=metadata,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            network=network,
            partial=partial,
        )
        return AsyncSandboxGroup(self._client, await _made(self._client, call))

    async def checkpoint(
        self, name: Optional[str] = None, *, finalize_memory_mb: Optional[int] = None
    ) -> CheckpointInfo:
        """Keep it as it is: see `Sandbox.checkpoint`."""
        call = calls.checkpoint_sandbox(self.id, name, finalize_memory_mb)
        with taken_back(self._client.socket_path, call, lambda made: [calls.delete_checkpoint(made.id)]):
            return await self._client._wire.run(call)

    async def resize(self, memory_mb: int) -> SandboxInfo:
        """Give it more memory, or less: see `Sandbox.resize`."""
        return await self._seen(calls.update_sandbox(self.id, memory_mb=memory_mb))

    async def set_timeout(self, seconds: Optional[int]) -> SandboxInfo:
        """End it after so many seconds from now, at most 2592000; `None`: never."""
        return await self._seen(calls.update_sandbox(self.id, timeout_seconds=seconds or 0))

    async def set_idle_timeout(self, seconds: Optional[int]) -> SandboxInfo:
        """End it when nobody has used it for so many seconds, at most 2592000; `None`: never."""
        return await self._seen(calls.update_sandbox(self.id, idle_timeout_seconds=seconds or 0))

    async def set_metadata(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Replace all of its metadata."""
        return await self._seen(calls.update_sandbox(self.id, metadata=metadata))

    async def pause(self) -> SandboxInfo:
        """Stop its vCPUs; that they are stopped already is fine. It keeps its memory."""
        return await self._seen(calls.pause_sandbox(self.id))

    async def resume(self) -> SandboxInfo:
        """Let it go on after `pause`; that it runs already is fine."""
        return await self._seen(calls.resume_sandbox(self.id))

    async def refresh(self) -> SandboxInfo:
        """Ask how it is, into `info`."""
        return await self._seen(calls.get_sandbox(self.id))

    async def usage(self) -> Usage:
        """Ask what it has used."""
        return calls.usage_of(await self._client._wire.run(calls.get_sandbox(self.id, usage=True)))

    async def logs(self) -> str:
        """Read what its console shows."""
        return await self._client._wire.run(calls.sandbox_logs(self.id))

    async def kill(self) -> bool:
        """End it, and everything in it: see `Sandbox.kill`."""
        try:
            await self._client._wire.run(calls.delete_sandbox(self.id))
        except NotFoundError:
            return False
        return True

    async def _seen(self, call: Call[SandboxInfo]) -> SandboxInfo:
        self.info = await self._client._wire.run(call)
        return self.info


class AsyncSandboxGroup(builtins.list[AsyncSandbox]):
    """Sandboxes that were made at once: a list, and as a context manager all are ended at the end.

    Attributes:
        errors: With `partial`, what those failed of that are not here.
        paused_us: How long the sandbox stood still that was forked, in microseconds.
    """

    def __init__(self, client: AsyncClient, made: MadeSeveral) -> None:
        super().__init__(AsyncSandbox._of(client, one) for one in made.made)
        self.errors = made.errors
        self.paused_us = made.paused_us

    async def __aenter__(self) -> AsyncSandboxGroup:
        return self

    async def __aexit__(self, *exception: object) -> None:
        async with AsyncExitStack() as stack:
            for sandbox in self:
                stack.push_async_callback(sandbox.kill)


async def _image_id(
    client: AsyncClient,
    image: Union[Image, ImageInfo, str],
    on_build_log: Optional[Listener[str]],
) -> str:
    if isinstance(image, Image):
        return (await client.build_image(image, on_log=on_build_log)).id
    return image if isinstance(image, str) else image.id


async def _made(client: AsyncClient, call: Call[MadeSeveral]) -> MadeSeveral:
    with taken_back(client.socket_path, call, calls.delete_made):
        return await client._wire.run(call)


def _checkpoint_id(checkpoint: Union[CheckpointInfo, str]) -> str:
    return checkpoint if isinstance(checkpoint, str) else checkpoint.id
