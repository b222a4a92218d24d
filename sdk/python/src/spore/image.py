"""Images, as what they are built from."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from ._core import canonical, local_files
from ._core.calls import Mode

if TYPE_CHECKING:
    from ._async_wire import Listener
    from .async_client import AsyncClient
    from .client import Client
    from .models import BuildMessage, BuildNetworkSpec, ImageInfo


class Image:
    """What an image is built from: a base, and steps that are run in order.

    An `Image` never changes: every method gives a new one. Nothing is built before `build`, or before a sandbox is made
    of it. What is built is remembered by the host, step by step: building the same again costs next to nothing.

    The daemon checks it all before anything boots. An `InvalidManifestError` names the step and the field.

    ```python
    image = (
        Image.base()
        .apt_install(["build-essential"])
        .run_commands("make -j")
        .builder_memory(8192)
    )
    ```
    """

    __slots__ = ("_manifest",)

    _manifest: Mapping[str, Any]

    def __init__(self) -> None:
        raise TypeError("images begin with Image.base() or Image.from_manifest()")

    @classmethod
    def _of(cls, manifest: Mapping[str, Any]) -> Image:
        image = object.__new__(cls)
        object.__setattr__(image, "_manifest", manifest)
        return image

    @classmethod
    def base(cls, name: str = "debian") -> Image:
        """Begin with a base of the host, as it is."""
        return cls._of({"base": name, "steps": []})

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Image:
        """Begin with a manifest as the daemon takes it; it may say more than the methods here can.

        Such as `runtimeMemoryMB`, the memory that the finished image is booted with, and the least that a sandbox of it
        has.

        Args:
            manifest: `{base, steps: [{type, args}], name?, builderMemoryMB?, runtimeMemoryMB?, diskMB?}`.

        Raises:
            ValueError: It has no `base`, or no list of `steps`. All else is for the daemon to check.
        """
        if not isinstance(manifest.get("base"), str) or not isinstance(manifest.get("steps"), list):
            raise ValueError("a manifest has a `base` and a list of `steps`")
        return cls._of(copy.deepcopy(dict(manifest)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an Image does not change; its methods give new ones")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Image.from_manifest, (self.manifest(),))

    def __eq__(self, other: object) -> bool:
        return self._manifest == other._manifest if isinstance(other, Image) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._manifest["base"], len(self._manifest["steps"]), self._manifest.get("name")))

    def __repr__(self) -> str:
        kinds = [step.get("type") if isinstance(step, dict) else step for step in self._manifest["steps"]]
        name = f", name={self._manifest['name']!r}" if "name" in self._manifest else ""
        return f"<Image base={self._manifest['base']!r}, steps={kinds}{name}>"

    def _step(self, kind: str, **args: Any) -> Image:
        steps = [*self._manifest["steps"], {"type": kind, "args": args}]
        return self._of({**self._manifest, "steps": steps})

    def _with(self, key: str, value: Any) -> Image:
        return self._of({**self._manifest, key: value})

    # Steps.

    def apt_install(self, *packages: Union[str, Iterable[str]]) -> Image:
        """Install Debian packages, without what they only recommend.

        Args:
            packages: Names, each maybe with `:architecture` and `=version`; one by one or in lists.
        """
        return self._step("apt_install", packages=_flat(packages))

    def pip_install(self, *packages: Union[str, Iterable[str]]) -> Image:
        """Install Python packages among the system's.

        Args:
            packages: Names, each maybe with extras and versions (`uvicorn[standard]>=0.30,<1`); no options, URLs,
                paths or markers. One by one or in lists.
        """
        return self._step("pip_install", packages=_flat(packages))

    def run_commands(self, *commands: Union[str, Iterable[str]]) -> Image:
        """Run commands as root, each with `/bin/sh -c`, until one fails.

        Args:
            commands: At most 131,071 bytes each; one by one or in lists.
        """
        return self._step("run", commands=_flat(commands))

    def env(self, variables: Mapping[str, str]) -> Image:
        """Set environment variables, for every later step and for every command in a sandbox."""
        # A number in a step would be refused, and could not be hashed.
        if not all(isinstance(text, str) for pair in variables.items() for text in pair):
            raise TypeError("names and values of variables are text")
        return self._step("env", vars=dict(variables))

    def workdir(self, path: str) -> Image:
        """Make a directory, and start every later step and every command in a sandbox there.

        Args:
            path: An absolute path.
        """
        return self._step("workdir", path=_absolute(path))

    def add_file(self, source: Union[str, os.PathLike[str], bytes], path: str, mode: Optional[Mode] = None) -> Image:
        """Write a file. It is read now.

        Args:
            source: Path of a file on this machine, or, as `bytes`, what should be in it; text: `add_text`.
            path: Its absolute path in the image; directories on the way are made.
            mode: Permission bits, `0o755` or `"0755"`. Default: `0644`; `0755` for a file that is executable here.

        Raises:
            OSError: The file here cannot be read.
            ValueError: It is no regular file, or has more than 48 MiB.
        """
        path = _absolute(path)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return self._step("add_file", path=path, **local_files.file_fields(bytes(source), mode))
        return self._step("add_file", path=path, **local_files.local_file(Path(source), mode))

    def add_text(self, text: str, path: str, mode: Optional[Mode] = None) -> Image:
        """Write a file with this text in UTF-8; otherwise as `add_file`."""
        return self.add_file(text.encode("utf-8"), path, mode)

    def add_local_dir(self, source: Union[str, os.PathLike[str]], path: str, *, ignore: Sequence[str] = ()) -> Image:
        """Write the files below a directory of this machine. They are read now.

        Links to files are followed. Directories without files are left out, and of modes only whether the owner may
        execute the file is kept: so the same files are the same image wherever they are checked out.

        Args:
            source: The directory on this machine.
            path: Absolute path of the directory in the image.
            ignore: What is left out: patterns as of a shell (`*.pyc`, `.git`), for the name or the path from `source`
                on.

        Raises:
            OSError: Something cannot be read.
            ValueError: There is something that can be no file of an image (a device, a link to a directory), or
                more than 48 MiB of files.
        """
        if isinstance(ignore, str):
            raise TypeError("`ignore` is a list of patterns")
        files = local_files.local_directory(Path(source), ignore)
        return self._step("add_dir", path=_absolute(path), files=files)

    # What is no part of the content.

    def name(self, name: str) -> Image:
        """Give the image a name, by which sandboxes can be made of it. It moves from an image that had it before.

        Args:
            name: 1 to 63 of a-z, 0-9, `.`, `_` and `-`, the first a letter or a digit.
        """
        return self._with("name", name)

    def builder_memory(self, memory_mb: int) -> Image:
        """Give the build VM this much memory. What a sandbox has is another question: `Sandbox.create(memory_mb=...)`.

        Args:
            memory_mb: MiB, from 256 to the host's memory. Default: 4096.
        """
        return self._with("builderMemoryMB", _whole(memory_mb))

    def disk(self, size_mb: int) -> Image:
        """Grow the image's disk.

        Args:
            size_mb: MiB. Default: the size of the base's disk, and it cannot be less.
        """
        return self._with("diskMB", _whole(size_mb))

    # What comes of it.

    def manifest(self) -> dict[str, Any]:
        """Give it as the daemon takes it; a copy of one's own."""
        return copy.deepcopy(dict(self._manifest))

    def content_hash(self) -> str:
        """Hash what it is built from: SHA-256 over the canonical JSON (RFC 8785) of base and steps, in hexadecimal.

        The daemon's `ImageInfo.content_hash` of an image built of this is the same. Name, memory and disk size are not
        in it.
        """
        return canonical.content_hash(self._manifest)

    def build(
        self,
        client: Optional[Client] = None,
        *,
        on_log: Optional[Callable[[str], object]] = None,
        on_message: Optional[Callable[[BuildMessage], object]] = None,
        no_cache: bool = False,
        step_timeout_seconds: Optional[int] = None,
        network: BuildNetworkSpec = "auto",
    ) -> ImageInfo:
        """Build it, or find it built already.

        Args:
            client: The host to build on; default: `Client.shared()`.
            on_log: Called with each line that the build says, without its end: `print` will do.
            on_message: Called with each of the build's messages.
            no_cache: Run every step, whatever is known of earlier builds.
            step_timeout_seconds: How long one step may take, 1 to 86400. Default: 1800.
            network: What steps reach: `auto`, everything beyond the host where the host can give a network; or as
                a sandbox's: `none`, `nat`, `{"allow": [...]}`.

        Raises:
            InvalidManifestError: It was refused before anything was run.
            BuildFailedError: A step failed; the message has the last that it wrote.
            BuildOomError: A step ran out of memory: raise `builder_memory`.
            SporeError: Anything else. What earlier steps made is kept: trying again goes on there.
        """
        from .client import Client

        return (client or Client.shared()).build_image(
            self,
            on_log=on_log,
            on_message=on_message,
            no_cache=no_cache,
            step_timeout_seconds=step_timeout_seconds,
            network=network,
        )

    async def build_async(
        self,
        client: Optional[AsyncClient] = None,
        *,
        on_log: Optional[Listener[str]] = None,
        on_message: Optional[Listener[BuildMessage]] = None,
        no_cache: bool = False,
        step_timeout_seconds: Optional[int] = None,
        network: BuildNetworkSpec = "auto",
    ) -> ImageInfo:
        """As `build`, with an `AsyncClient`. The callbacks may be coroutine functions."""
        from .async_client import AsyncClient

        return await (client or AsyncClient.shared()).build_image(
            self,
            on_log=on_log,
            on_message=on_message,
            no_cache=no_cache,
            step_timeout_seconds=step_timeout_seconds,
            network=network,
        )


def manifest_of(image: Union[Image, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Give the manifest of what may be one already."""
    return image.manifest() if isinstance(image, Image) else image


def _flat(items: tuple[Union[str, Iterable[str]], ...]) -> list[str]:
    flat: list[str] = []
    for item in items:
        flat.extend([item] if isinstance(item, str) else item)
    for item in flat:
        if not isinstance(item, str):
            raise TypeError(f"{item!r} is no text")
    return flat


def _absolute(path: str) -> str:
    if not isinstance(path, str):
        raise TypeError(f"{path!r} is no text; a path in the image is")
    if not path.startswith("/"):
        raise ValueError(f"{path!r} should be an absolute path in the image, beginning with /")
    return path


def _whole(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} should be a whole number of MiB")
    return value
