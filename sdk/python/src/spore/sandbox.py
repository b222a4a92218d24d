"""Sandboxes."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Callable, Optional, Union

from ._core import calls
from ._core import command as commands
from ._core.call import Call
from ._core.calls import Made, MadeSeveral
from ._core.command import Command, StdinStream
from ._sync_wire import WebSocket
from ._undo import taken_back
from .client import Client
from .errors import NotFoundError, SporeError
from .exec_stream import ExecStream, Feeder
from .files import Files
from .image import Image
from .models import (
    CheckpointInfo,
    ExecResult,
    ImageInfo,
    NetworkSpec,
    SandboxInfo,
    Usage,
)


class Sandbox:
    """A sandbox: a virtual machine of its own, forked from an image or a checkpoint in milliseconds.

    As a context manager it is ended at the end. All methods raise a `SporeError`; `NotFoundError` where the sandbox is
    no more, and what their own documentation names.

    ```python
    with Sandbox.create(image="debian-tools", memory_mb=4096) as sandbox:
        print(sandbox.exec("uname -a").stdout)
    ```

    Attributes:
        info: What the daemon last said about it; `refresh` asks anew.
        files: Its files.
        first_result: What the command came to that it was made with (`create(exec=...)`).
    """

    def __init__(self, client: Client, info: SandboxInfo, first_result: Optional[ExecResult] = None) -> None:
        self._client = client
        self.info = info
        self.files = Files(client, info.id)
        self.first_result = first_result

    @classmethod
    def create(
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
        on_build_log: Optional[Callable[[str], object]] = None,
        client: Optional[Client] = None,
    ) -> Sandbox:
        """Make a sandbox of an image. It is ready when this returns, with the memory that was asked for.

        Args:
            image: Name or id of an image; or an `Image`, which is built first, and found if it was built before.
            memory_mb: MiB. Less than the image's floor is raised to that. Default: the floor.
            cpus: vCPUs, 1 to 16. Default: the image's. One that was not booted with so many is booted once.
            disk_mb: MiB. Default: the image's; less than that is refused.
            env: Variables of every commands.
            metadata: Words to find it again by: at most 64, 16 KiB in all.
            timeout_seconds: It is ended after so many seconds, 1 to 2592000. Default: never.
            idle_timeout_seconds: It is ended when nobody has used it for so many seconds, at most 2592000: no command
                or copy went on, and it was not forked, checkpointed or changed. 0: never. Default: what the daemon was
                told.
            network: What it reaches: `"none"`; `"nat"`, everything beyond the host's uplink; or `{"allow": [...]}` of 1
                to 64 networks (`198.51.100.0/24`) and hosts (`example.com:443`).
            exec: A command to run at once; what it came to is in `first_result`.
            on_build_log: Called with the lines of the build, if an `Image` is built.
            client: The host. Default: `Client.shared()`.

        Raises:
            NotFoundError: There is no such image.
            InsufficientCapacityError: The host has no room; `details` says what would fit.
            DrainingError: The host takes no new sandboxes.
            BuildFailedError: The `Image` could not be built.
        """
        client = client or Client.shared()
        call = calls.create_sandbox(
            image=_image_id(client, image, on_build_log),
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
        return cls._of(client, _made(client, call).made[0])

    @classmethod
    def create_many(
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
        on_build_log: Optional[Callable[[str], object]] = None,
        client: Optional[Client] = None,
    ) -> SandboxGroup:
        """Make several sandboxes at once; otherwise as `create`.

        Args:
            count: How many, 1 to 64.
            image: As for `create`, and so are those not named here.
            checkpoint: Name or id of a checkpoint, in place of an image.
            partial: Whether some are kept when others failed: what those failed of is in `SandboxGroup.errors`.
                Default: all or none.
        """
        client = client or Client.shared()
        call = calls.create_sandbox(
            image=None if image is None else _image_id(client, image, on_build_log),
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
        return SandboxGroup(client, _made(client, call))

    @classmethod
    def from_checkpoint(
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
        client: Optional[Client] = None,
    ) -> Sandbox:
        """Make a sandbox of a checkpoint; otherwise as `create`.

        Args:
            checkpoint: Its name or id, or what `checkpoint` gave.
            memory_mb: MiB; less than the checkpoint's floor is raised to that. The others are as for `create`.
        """
        client = client or Client.shared()
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
        return cls._of(client, _made(client, call).made[0])

    @classmethod
    def connect(cls, id: str, *, client: Optional[Client] = None) -> Sandbox:
        """Find a sandbox that is there.

        Raises:
            NotFoundError: There is none.
        """
        client = client or Client.shared()
        return cls(client, client._wire.run(calls.get_sandbox(id)))

    @classmethod
    def list(
        cls, *, metadata: Optional[Mapping[str, str]] = None, client: Optional[Client] = None
    ) -> builtins.list[Sandbox]:
        """Find all sandboxes, the newest first; with `metadata`, those that have all of it."""
        client = client or Client.shared()
        return [cls(client, info) for info in client._wire.run(calls.list_sandboxes(metadata))]

    @classmethod
    def _of(cls, client: Client, made: Made) -> Sandbox:
        return cls(client, made.info, made.exec)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} {self.info.state}>"

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    # Commands.

    def exec(
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
        """Run a command and wait for its end.

        Args:
            command: A line for `/bin/sh -c`, or a list of a program and its arguments without a shell between; an
                empty list is the image's own commands.
            check: Whether another exit code than 0 is an error.
            env: Variables over those of the sandbox.
            cwd: Absolute path of the working directory. Default: the image's.
            user: As whom: `user`, `uid`, `user:group` or `uid:gid`. Default: the image's.
            stdin: What it reads. Default: nothing.
            timeout_seconds: It is killed after so many seconds, 1 to 86400. Default: 3600.

        Raises:
            CommandFailedError: Its exit code is not 0, and `check` was asked for.
            GuestRefusedError: There is no such working directory or user.
            SandboxEndedError: The sandbox ended meanwhile.
        """
        request = commands.exec_request(
            command, env=env, cwd=cwd, user=user, stdin=stdin, timeout_seconds=timeout_seconds
        )
        return commands.checked(self._client._wire.run(calls.run_command(self.id, request)), command, check)

    def exec_stream(
        self,
        command: Command,
        *,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
        check: bool = False,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        stdin: Optional[StdinStream] = None,
        timeout_seconds: Optional[int] = None,
    ) -> ExecResult:
        """Run a command and hear what it writes while it does.

        Args:
            command: As for `exec`.
            on_stdout: Called with each piece of its standard output. Without it, the output is in the result, as of
                `exec`.
            on_stderr: Likewise for its standard error.
            check: As for `exec`, and so are `env`, `cwd` and `user`.
            stdin: What it reads, of any length: text, bytes, or anything that gives bytes, such as a file open for
                reading bytes.
            timeout_seconds: It is killed after so many seconds, 1 to 86400. Default: never.

        Raises:
            CommandFailedError: Its exit code is not 0, and `check` was asked for.
            GuestRefusedError: There is no such working directory or user.
            ConnectionLostError: The connection ended before the command did; that killed it.
        """
        with self.exec_interactive(command, env=env, cwd=cwd, user=user, timeout_seconds=timeout_seconds) as stream:
            feeding = Feeder(stream, stdin)
            try:
                result = stream.wait(on_stdout=on_stdout, on_stderr=on_stderr)
            except SporeError:
                feeding.raise_own()
                raise
        return commands.checked(result, command, check)

    def exec_interactive(
        self,
        command: Command,
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        timeout_seconds: Optional[int] = None,
        tty: Optional[tuple[int, int]] = None,
    ) -> ExecStream:
        """Start a command, to talk with it.

        Args:
            command: As for `exec`, and so are `env`, `cwd` and `user`.
            timeout_seconds: It is killed after so many seconds, 1 to 86400. Default: never.
            tty: Give it a terminal of so many lines and characters a line. Standard error then is part of standard
                output.
        """
        request = commands.exec_request(command, env=env, cwd=cwd, user=user, timeout_seconds=timeout_seconds, tty=tty)
        socket = WebSocket(self._client.socket_path, calls.exec_target(self.id))
        return ExecStream.start(socket, request)

    # Its life.

    def fork(
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
    ) -> SandboxGroup:
        """Fork it as it runs: each child goes on from here with memory, processes and disk of its own.

        Args:
            count: How many, 1 to 64.
            memory_mb: MiB of each. Default: what this one has.
            env: Variables of every command, over this one's.
            metadata: The children's.
            timeout_seconds: Each is ended after so many seconds. Default: never.
            idle_timeout_seconds: Each is ended when nobody has used it for so many seconds; 0: never. Default: as this
                one.
            network: What each reaches. Default: what this one does.
            partial: Whether some are kept when others failed. Default: all or none.

        Raises:
            InsufficientCapacityError: The host has no room for them.
        """
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
        return SandboxGroup(self._client, _made(self._client, call))

    def checkpoint(self, name: Optional[str] = None, *, finalize_memory_mb: Optional[int] = None) -> CheckpointInfo:
        """Keep it as it is, for `from_checkpoint`. It runs on.

        Args:
            name: A name for the checkpoint, unique: letters, digits, `.`, `_`, `-`, at most 64.
            finalize_memory_mb: Boot its disks anew with so many MiB, 256 to 16384, and keep that: processes and memory
                are left behind. Default: all as it runs, with the memory that it has as the least of a fork.

        Raises:
            ConflictError: The name is taken.
        """
        call = calls.checkpoint_sandbox(self.id, name, finalize_memory_mb)
        with taken_back(self._client.socket_path, call, lambda made: [calls.delete_checkpoint(made.id)]):
            return self._client._wire.run(call)

    def resize(self, memory_mb: int) -> SandboxInfo:
        """Give it more memory, or less. Returns when the guest itself shows it.

        Args:
            memory_mb: MiB. Less than its floor is raised to that.

        Raises:
            AboveMaximumError: It is more than it can have.
            InsufficientCapacityError: The host has no room.
        """
        return self._seen(calls.update_sandbox(self.id, memory_mb=memory_mb))

    def set_timeout(self, seconds: Optional[int]) -> SandboxInfo:
        """End it after so many seconds from now, at most 2592000; `None`: never."""
        return self._seen(calls.update_sandbox(self.id, timeout_seconds=seconds or 0))

    def set_idle_timeout(self, seconds: Optional[int]) -> SandboxInfo:
        """End it when nobody has used it for so many seconds, at most 2592000; `None`: never."""
        return self._seen(calls.update_sandbox(self.id, idle_timeout_seconds=seconds or 0))

    def set_metadata(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Replace all of its metadata."""
        return self._seen(calls.update_sandbox(self.id, metadata=metadata))

    def pause(self) -> SandboxInfo:
        """Stop its vCPUs; that they are stopped already is fine. It keeps its memory."""
        return self._seen(calls.pause_sandbox(self.id))

    def resume(self) -> SandboxInfo:
        """Let it go on after `pause`; that it runs already is fine."""
        return self._seen(calls.resume_sandbox(self.id))

    def refresh(self) -> SandboxInfo:
        """Ask how it is, into `info`."""
        return self._seen(calls.get_sandbox(self.id))

    def usage(self) -> Usage:
        """Ask what it has used."""
        return calls.usage_of(self._client._wire.run(calls.get_sandbox(self.id, usage=True)))

    def logs(self) -> str:
        """Read what its console shows."""
        return self._client._wire.run(calls.sandbox_logs(self.id))

    def kill(self) -> bool:
        """End it, and everything in it.

        Returns:
            Whether it was there.
        """
        try:
            self._client._wire.run(calls.delete_sandbox(self.id))
        except NotFoundError:
            return False
        return True

    def _seen(self, call: Call[SandboxInfo]) -> SandboxInfo:
        self.info = self._client._wire.run(call)
        return self.info


class SandboxGroup(builtins.list[Sandbox]):
    """Sandboxes that were made at once: a list, and as a context manager all are ended at the end.

    Attributes:
        errors: With `partial`, what those failed of that are not here.
        paused_us: How long the sandbox stood still that was forked, in microseconds.
    """

    def __init__(self, client: Client, made: MadeSeveral) -> None:
        super().__init__(Sandbox._of(client, one) for one in made.made)
        self.errors = made.errors
        self.paused_us = made.paused_us

    def __enter__(self) -> SandboxGroup:
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as stack:
            for sandbox in self:
                stack.callback(sandbox.kill)


def _image_id(
    client: Client,
    image: Union[Image, ImageInfo, str],
    on_build_log: Optional[Callable[[str], object]],
) -> str:
    if isinstance(image, Image):
        return client.build_image(image, on_log=on_build_log).id
    return image if isinstance(image, str) else image.id


def _made(client: Client, call: Call[MadeSeveral]) -> MadeSeveral:
    with taken_back(client.socket_path, call, calls.delete_made):
        return client._wire.run(call)


def _checkpoint_id(checkpoint: Union[CheckpointInfo, str]) -> str:
    return checkpoint if isinstance(checkpoint, str) else checkpoint.id
