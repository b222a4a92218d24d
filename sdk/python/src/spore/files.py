"""Files of a sandbox."""

from __future__ import annotations

import builtins
import os
from contextlib import closing
from pathlib import Path
from typing import Optional, Union

from ._core import calls
from ._core.calls import Mode
from ._core.local_files import Download
from .client import Client
from .models import DirEntry, FileInfo


class Files:
    """A sandbox's files. Paths are absolute, and of the sandbox.

    A file that is not there, or may not be touched, is a `GuestRefusedError`.
    """

    def __init__(self, client: Client, sandbox: str) -> None:
        self._client = client
        self._sandbox = sandbox

    def read(self, path: str) -> bytes:
        """Read a file."""
        return self._client._wire.run(calls.read_file(self._sandbox, path))

    def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Read a file as text.

        Raises:
            UnicodeDecodeError: It is none.
        """
        return self.read(path).decode(encoding)

    def write(self, path: str, data: Union[bytes, str], mode: Optional[Mode] = None) -> FileInfo:
        """Write a file, whole or not at all; directories on the way are made.

        Args:
            path: Where.
            data: What, at most 1 GiB; text is written in UTF-8.
            mode: Permission bits, `0o755` or `"0755"`. Default: those that it has, or `0644`.
        """
        return self._client._wire.run(calls.write_file(self._sandbox, path, data, mode))

    def upload(self, local: Union[str, os.PathLike[str]], path: str, mode: Optional[Mode] = None) -> FileInfo:
        """Write a file of this machine into the sandbox, without having it all in memory; otherwise as `write`.

        Raises:
            OSError: The file here cannot be read.
        """
        return self._client._wire.run(calls.write_file(self._sandbox, path, None, mode, Path(local)))

    def download(self, path: str, local: Union[str, os.PathLike[str]]) -> int:
        """Write a file of the sandbox to this machine, without having it all in memory.

        Returns:
            Its size in bytes.

        Raises:
            OSError: The file here cannot be written.
        """
        call = calls.read_file(self._sandbox, path)
        with Download(Path(local)) as file, closing(self._client._wire.body(call)) as body:
            for piece in body:
                file.write(piece)
        return file.size

    def list(self, path: str) -> builtins.list[DirEntry]:
        """List a directory, sorted by name."""
        return self._client._wire.run(calls.list_files(self._sandbox, path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; with `recursive`, a directory and all that is in it."""
        self._client._wire.run(calls.remove_file(self._sandbox, path, recursive))

    def mkdir(self, path: str, mode: Optional[Mode] = None) -> None:
        """Make a directory with its parents; one that is there already is fine."""
        self._client._wire.run(calls.make_directory(self._sandbox, path, mode))
