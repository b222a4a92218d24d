"""A fake daemon for each test that wants one."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fake
import halves
import pytest
import rust_types

import spore
from spore._core import call


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Fake]:
    """A fake daemon that is the one of SPORE_SOCKET, with an image named `tools`."""
    if not rust_types.SOURCE.is_dir():
        pytest.skip(f"SKIPPED: the daemon's types are not here: {rust_types.SOURCE}")
    monkeypatch.setattr(call, "PAUSES", (0.01, 0.02, 0.03))
    # A socket's path is short; pytest's own directories may not be.
    with tempfile.TemporaryDirectory(prefix="spore-py-") as directory:
        running = fake.Fake(Path(directory))
        running.start()
        monkeypatch.setenv("SPORE_SOCKET", running.socket)
        spore.Image.base("busybox").name("tools").build()
        running.requests.clear()
        yield running
        for client in spore.Client._shared.values():
            client.close()
        spore.Client._shared.clear()
        running.stop()


@pytest.fixture(scope="session")
def real_image() -> str:
    """The name of an image on the daemon that SPORE_SOCKET was when the tests began."""
    missing = [name for name in ("SPORE_SOCKET", "SPORE_TEST_IMAGE") if not os.environ.get(name)]
    if missing:
        pytest.skip(f"SKIPPED: no real daemon: {' and '.join(missing)} not set")
    return os.environ["SPORE_TEST_IMAGE"]


@pytest.fixture
def anyio_backend() -> str:
    """The package is for asyncio."""
    return "asyncio"


@pytest.fixture
def collected() -> Iterator[None]:
    """See to it that what a test leaves to the garbage collector is not found in another test."""
    yield
    gc.collect()


@pytest.fixture(params=["sync", "async"])
def api(request: pytest.FixtureRequest, anyio_backend: str) -> halves.Api:
    """Each half of the package."""
    return halves.Api(request.param)
