"""A fake daemon for each test that wants one."""

from __future__ import annotations

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
        spore.Client.shared().close()
        running.stop()


@pytest.fixture
def anyio_backend() -> str:
    """The package is for asyncio."""
    return "asyncio"


@pytest.fixture(params=["sync", "async"])
def api(request: pytest.FixtureRequest, anyio_backend: str) -> halves.Api:
    """Each half of the package."""
    return halves.Api(request.param)
