"""Files of this machine as steps of an image."""

from __future__ import annotations

import base64
import fnmatch
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from .calls import Mode, mode_text

#: The most bytes of files that one image can have: a manifest has at most 64 MiB, and base64 takes a third more.
MAX_BYTES = 48 << 20


def file_fields(content: bytes, mode: Optional[Mode]) -> dict[str, Any]:
    """Give the fields of a file in a step."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"{len(content)} bytes are more than an image's steps can carry ({MAX_BYTES})")
    fields = {"content": base64.b64encode(content).decode("ascii")}
    return fields if mode is None else {**fields, "mode": mode_text(mode)}


def local_file(path: Path, mode: Optional[Mode]) -> dict[str, Any]:
    """Give the fields of a file from here. Of its mode only whether its owner may execute it is kept.

    So the same files give the same image wherever they are checked out.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file, or too large.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no regular file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"{path} has {found.st_size} bytes, more than an image's steps can carry ({MAX_BYTES})")
    if mode is None and found.st_mode & stat.S_IXUSR:
        mode = "0755"
    return file_fields(path.read_bytes(), mode)


def local_directory(root: Path, ignore: Sequence[str]) -> list[dict[str, Any]]:
    """Give the files below a directory, in the order of their paths.

    Raises:
        OSError: Something cannot be read.
        ValueError: Something in it can be no file of an image: a device, a link to a directory, a name that is not
            UTF-8; or it is all too large.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no directory")
    files: list[dict[str, Any]] = []
    total = 0
    for relative in sorted(_walk(root, "", ignore)):
        fields = local_file(root / relative, None)
        total += len(fields["content"]) * 3 // 4
        if total > MAX_BYTES:
            raise ValueError(
                f"the files in {root} are more than an image's steps can carry ({MAX_BYTES} bytes): "
                "leave some out with `ignore`, or fetch them in a step"
            )
        files.append({"relativePath": relative, **fields})
    return files


class Download:
    """A file of this machine that is written whole or not at all. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = 0

    def __enter__(self) -> Download:
        self._file = tempfile.NamedTemporaryFile(
            dir=self._path.parent, prefix=f".{self._path.name:.100}.", delete=False
        )
        return self

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        self._file.write(piece)
        self.size += len(piece)

    def __exit__(self, kind: object, *rest: object) -> None:
        self._file.close()
        part = Path(self._file.name)
        if kind is None:
            # As any new file; a temporary one is its owner's alone.
            umask = os.umask(0)
            os.umask(umask)
            part.chmod(0o666 & ~umask)
            part.replace(self._path)
        else:
            part.unlink()


def _walk(root: Path, below: str, ignore: Sequence[str]) -> Iterator[str]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            relative = f"{below}/{entry.name}" if below else entry.name
            if any(
                fnmatch.fnmatchcase(relative, pattern) or fnmatch.fnmatchcase(entry.name, pattern) for pattern in ignore
            ):
                continue
            try:
                relative.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{os.fsencode(entry.path)!r} is no name in UTF-8") from None
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, relative, ignore)
            elif entry.is_dir():
                raise ValueError(f"{entry.path} is a link to a directory; leave it out with `ignore`")
            else:
                yield relative
