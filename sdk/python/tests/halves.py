"""Both halves of the package through one interface, so that a test is written once and run on each.

The asynchronous half is itself. The synchronous one is made to look like it: its methods are run in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import spore

HANDLES = (spore.Client, spore.Sandbox, spore.SandboxGroup, spore.Files, spore.ExecStream)


def wrapped(found: Any) -> Any:
    if isinstance(found, HANDLES):
        return Half(found)
    return [wrapped(item) for item in found] if type(found) is list else found


def bare(given: Any) -> Any:
    return given._inner if isinstance(given, Half) else given


class Half:
    """An object or a class of the synchronous half, with coroutines for methods."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return wrapped(self._inner(*args, **keywords))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or isinstance(found, type):
            return wrapped(found)
        if name in ("events", "shared"):
            result = found
            return (
                lambda *args, **keywords: Stream(result(*args, **keywords)) if name == "events" else wrapped(result())
            )

        async def method(*args: Any, **keywords: Any) -> Any:
            keywords = {key: bare(value) for key, value in keywords.items()}
            return wrapped(await asyncio.to_thread(found, *map(bare, args), **keywords))

        return method

    async def __aenter__(self) -> Half:
        self._inner.__enter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await asyncio.to_thread(self._inner.__exit__, *exception)

    def __aiter__(self) -> AsyncIterator[Any]:
        return Stream(iter(self._inner)).__aiter__()

    def __iter__(self) -> Iterator[Any]:
        return map(wrapped, self._inner)

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Any:
        return wrapped(self._inner[index])

    def __repr__(self) -> str:
        return repr(self._inner)


class Stream:
    """A generator as an asynchronous one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[Any]:
        end = object()
        while (item := await asyncio.to_thread(next, self._inner, end)) is not end:
            yield item

    async def aclose(self) -> None:
        self._inner.close()


class Api:
    """The names of one half."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sync = name == "sync"
        self.Sandbox: Any = Half(spore.Sandbox) if self.sync else spore.AsyncSandbox
        self.Client: Any = Half(spore.Client) if self.sync else spore.AsyncClient

    async def build(self, image: spore.Image, **keywords: Any) -> spore.ImageInfo:
        if self.sync:
            keywords = {key: bare(value) for key, value in keywords.items()}
            return await asyncio.to_thread(image.build, **keywords)
        return await image.build_async(**keywords)
