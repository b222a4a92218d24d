"""Files of a sandbox, for programs on asyncio."""

from __future__ import annotations

import asyncio
import builtins
import os
from pathlib import Path
from typing import Optional, Union

from ._async_wire import aclosing
from ._core import calls
from ._core.calls import Mode
from ._core.local_files import Download
from .async_client import AsyncClient
from .models import DirEntry, FileInfo


class AsyncFiles:
    """As `Files`, on asyncio. What is said there of arguments and errors holds here."""

    def __init__(self, client: AsyncClient, sandbox: str) -> None:
        self._client = client
        self._sandbox = sandbox

    async def read(self, path: str) -> bytes:
        """Read a file."""
        return await self._client._wire.run(calls.read_file(self._sandbox, path))

    async def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Read a file as text: see `Files.read_text`."""
        return (await self.read(path)).decode(encoding)

    async def write(self, path: str, data: Union[bytes, str], mode: Optional[Mode] = None) -> FileInfo:
        """Write a file, whole or not at all: see `Files.write`."""
        return await self._client._wire.run(calls.write_file(self._sandbox, path, data, mode))

    async def upload(self, local: Union[str, os.PathLike[str]], path: str, mode: Optional[Mode] = None) -> FileInfo:
        """Write a file of this machine into the sandbox: see `Files.upload`."""
        return await self._client._wire.run(calls.write_file(self._sandbox, path, None, mode, Path(local)))

    async def download(self, path: str, local: Union[str, os.PathLike[str]]) -> int:
        """Write a file of the sandbox to this machine: see `Files.download`."""
        call = calls.read_file(self._sandbox, path)
        with Download(Path(local)) as file:
            async with aclosing(self._client._wire.body(call)) as body:
                async for piece in body:
                    await asyncio.to_thread(file.write, piece)
        return file.size

    async def list(self, path: str) -> builtins.list[DirEntry]:
        """List a directory, sorted by name."""
        return await self._client._wire.run(calls.list_files(self._sandbox, path))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; with `recursive`, a directory and all that is in it."""
        await self._client._wire.run(calls.remove_file(self._sandbox, path, recursive))

    async def mkdir(self, path: str, mode: Optional[Mode] = None) -> None:
        """Make a directory with its parents; one that is there already is fine."""
        await self._client._wire.run(calls.make_directory(self._sandbox, path, mode))
