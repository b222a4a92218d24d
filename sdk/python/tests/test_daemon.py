"""The package with a real daemon and real guests, both halves, in one sandbox and a few forks of it.

Runs where SPORE_SOCKET names a daemon's socket and SPORE_TEST_IMAGE an image that is there, such as of:

    Image.base("busybox").name("tools").build()
"""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from halves import Api

import spore
from spore import Image, Sandbox
from spore._core import calls

pytestmark = [pytest.mark.anyio, pytest.mark.daemon]

JOB = {"spore-python-test": uuid.uuid4().hex}


@pytest.fixture(scope="module")
def machine(real_image: str) -> Iterator[Sandbox]:
    """One sandbox for all tests."""
    with Sandbox.create(
        image=real_image,
        env={"GREETING": "Grüße"},
        metadata=JOB,
        timeout_seconds=1800,
        exec="echo $GREETING",
    ) as sandbox:
        yield sandbox
    assert Sandbox.list(metadata=JOB) == []


@pytest.fixture
async def sandbox(api: Api, machine: Sandbox) -> Any:
    return await api.Sandbox.connect(machine.id)


def test_the_first_command_has_run(machine: Sandbox) -> None:
    assert machine.first_result is not None
    assert machine.first_result.stdout == "Grüße\n"
    assert machine.info.times.ready_us >= machine.info.times.woke_us >= machine.info.times.released_us > 0


async def test_commands(sandbox: Any) -> None:
    result = await sandbox.exec("echo $GREETING $X; cat; pwd; exit 3", env={"X": "y"}, cwd="/tmp", stdin=b"\xff\n")
    assert (result.stdout_bytes, result.exit_code) == ("Grüße y\n".encode() + b"\xff\n/tmp\n", 3)
    assert result.took_ms > 0
    assert (await sandbox.exec(["printf", "%s", "$GREETING"])).stdout == "$GREETING"
    with pytest.raises(spore.CommandFailedError, match="why"):
        await sandbox.exec("echo why >&2; false", check=True)
    assert (await sandbox.exec(["/no/such/program"])).exit_code == 127
    with pytest.raises(spore.GuestRefusedError, match="/nothing"):
        await sandbox.exec("true", cwd="/nothing")
    late = await sandbox.exec(["sleep", "600"], timeout_seconds=1)
    assert (late.timed_out, late.exit_code) == (True, 124)


async def test_streams(sandbox: Any) -> None:
    out: list[str] = []
    result = await sandbox.exec_stream("echo one; echo two >&2; exit 5", on_stdout=out.append)
    assert ("".join(out), result.stderr, result.exit_code) == ("one\n", "two\n", 5)
    data = bytes(range(256)) * 1024
    assert (await sandbox.exec_stream("cat", stdin=data)).stdout_bytes == data
    assert (await sandbox.exec_stream("exit 4", stdin=data * 16)).exit_code == 4
    with pytest.raises(spore.GuestRefusedError, match="/nothing"):
        await sandbox.exec_stream("true", cwd="/nothing")


async def test_talking_with_a_command(sandbox: Any) -> None:
    heard = b""
    async with await sandbox.exec_interactive("read line; stty size; echo $line", tty=(24, 80)) as stream:
        await stream.resize(50, 132)
        await stream.send_stdin("hello\n")
        async for output in stream:
            assert output.stream == "stdout"
            heard += output.data
        assert stream.result.exit_code == 0
    assert heard.replace(b"\r", b"").split() == [b"hello", b"50", b"132", b"hello"]
    async with await sandbox.exec_interactive("trap 'exit 9' INT; echo up; while :; do sleep 0.1; done") as stream:
        async for output in stream:
            if output.data == b"up\n":
                await stream.send_signal(signal.SIGINT)
        assert stream.result.exit_code == 9


async def test_a_command_that_is_left_is_killed(sandbox: Any) -> None:
    async with await sandbox.exec_interactive("echo $$; exec sleep 600") as stream:
        async for output in stream:
            pid = output.data.decode().strip()
            break
        assert (await sandbox.exec(["kill", "-0", pid])).ok
    for _ in range(100):
        if not (await sandbox.exec(["kill", "-0", pid])).ok:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it runs on")


async def test_files(sandbox: Any, tmp_path: Path) -> None:
    files, directory = sandbox.files, f"/tmp/{uuid.uuid4().hex}"
    assert (await files.write(f"{directory}/a b/é", b"\0\xff", mode=0o640)).size_bytes == 2
    assert await files.read(f"{directory}/a b/é") == b"\0\xff"
    await files.write(f"{directory}/text", "Grüße")
    assert await files.read_text(f"{directory}/text") == "Grüße"
    await files.write(f"{directory}/empty", b"")
    assert await files.read(f"{directory}/empty") == b""
    await files.mkdir(f"{directory}/d", mode=0o700)
    found = [(entry.name, entry.kind, entry.mode) for entry in await files.list(directory)]
    assert found == [
        ("a b", "directory", "0755"),
        ("d", "directory", "0700"),
        ("empty", "file", "0644"),
        ("text", "file", "0644"),
    ]
    (tmp_path / "here").write_bytes(bytes(range(256)) * 4096)
    assert (await files.upload(tmp_path / "here", f"{directory}/large")).size_bytes == 1 << 20
    assert await files.download(f"{directory}/large", tmp_path / "back") == 1 << 20
    assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
    await files.remove(directory, recursive=True)
    for missing in (files.read(f"{directory}/text"), files.list(directory), files.remove(directory)):
        with pytest.raises(spore.GuestRefusedError):
            await missing


async def test_its_state(sandbox: Any) -> None:
    assert (await sandbox.pause()).state == "paused"
    with pytest.raises(spore.ConflictError):
        await sandbox.exec("true")
    assert (await sandbox.resume()).state == "running"
    with pytest.raises(spore.AboveMaximumError):
        await sandbox.resize(sandbox.info.memory.max_mb + 1)
    assert (await sandbox.set_timeout(1700)).expires_at <= time.time() + 1800
    assert (await sandbox.set_idle_timeout(1700)).idle_timeout_seconds == 1700
    assert (await sandbox.set_idle_timeout(None)).idle_timeout_seconds is None
    assert (await sandbox.set_metadata({**JOB, "x": "y"})).metadata == {**JOB, "x": "y"}
    usage = await sandbox.usage()
    assert usage.cpu_ms > 0
    assert usage.rss_bytes >= usage.unique_bytes > 0
    assert isinstance(await sandbox.logs(), str)


def test_it_grows(machine: Sandbox) -> None:
    # Once: where KVM is software, growing takes its time.
    wanted = machine.info.memory.floor_mb + 128
    assert machine.resize(wanted).memory.granted_mb == wanted
    assert machine.refresh().memory.granted_mb == wanted


async def test_it_is_found_again(api: Api, sandbox: Any, machine: Sandbox) -> None:
    assert machine.id in [found.id for found in await api.Sandbox.list(metadata=JOB)]
    assert await api.Sandbox.list(metadata={"nobody": uuid.uuid4().hex}) == []
    with pytest.raises(spore.NotFoundError):
        await api.Sandbox.connect("0" * 32)


async def test_forks_go_on_from_where_it_is(api: Api, sandbox: Any) -> None:
    name = f"/dev/shm/{uuid.uuid4().hex}"
    await sandbox.files.write(name, "of the parent")
    async with await sandbox.fork(metadata=JOB, timeout_seconds=900) as children:
        (child,) = children
        assert children.paused_us > 0
        assert (child.info.parent, child.info.origin) == (sandbox.id, "liveFork")
        assert await child.files.read_text(name) == "of the parent"
        await child.files.write(name, "of the child")
        assert await sandbox.files.read_text(name) == "of the parent"
    with pytest.raises(spore.NotFoundError):
        await api.Sandbox.connect(child.id)
    assert await child.kill() is False


def test_a_checkpoint_is_kept_and_forked(machine: Sandbox) -> None:
    client = spore.Client.shared()
    name = f"test-{uuid.uuid4().hex}"
    machine.files.write("/dev/shm/note", "kept")
    checkpoint = machine.checkpoint(name)
    try:
        assert (checkpoint.name, checkpoint.kind) == (name, "sandbox")
        assert client.get_checkpoint(name).id == checkpoint.id
        with pytest.raises(spore.ConflictError):
            machine.checkpoint(name)
        with Sandbox.from_checkpoint(name, metadata=JOB, timeout_seconds=900) as again:
            assert again.info.checkpoint == checkpoint.id
            assert again.files.read_text("/dev/shm/note") == "kept"
    finally:
        client.delete_checkpoint(name)
    with pytest.raises(spore.NotFoundError):
        client.get_checkpoint(name)


def test_what_is_made_is_made_once_a_key(real_image: str) -> None:
    wire = spore.Client.shared()._wire
    call = calls.create_sandbox(
        image=real_image,
        memory_mb=None,
        cpus=None,
        disk_mb=None,
        env=None,
        metadata=JOB,
        timeout_seconds=900,
        network="none",
        exec=None,
    )
    first, second = (Sandbox.connect(wire.run(call).made[0].info.id) for _ in range(2))
    with first:
        assert first.id == second.id


async def test_events_tell_what_happens(api: Api, sandbox: Any) -> None:
    async with api.Client() as client:
        events = client.events()
        following = asyncio.ensure_future(events.__aiter__().__anext__())
        await asyncio.sleep(0.5)
        async with await api.Sandbox.from_checkpoint(
            await first_checkpoint(client, sandbox), metadata=JOB, timeout_seconds=900
        ) as made:
            event = await asyncio.wait_for(following, 60)
        while event.type != "sandboxCreated" or event.sandbox != made.id:
            event = await asyncio.wait_for(events.__aiter__().__anext__(), 60)
        # From before it: it comes again.
        again = client.events(event.id - 1)
        async for first in again:
            assert (first.id, first.type, first.sandbox) == (event.id, "sandboxCreated", made.id)
            break
        await again.aclose()
        await events.aclose()


async def first_checkpoint(client: Any, sandbox: Any) -> str:
    image = await client.get_image(sandbox.info.image)
    return str(image.checkpoints[0].id)


async def test_the_host(api: Api, machine: Sandbox) -> None:
    async with api.Client() as client:
        host = await client.host()
        assert host.sandboxes >= 1
        assert host.memory.total_mb > 0
        assert machine.info.image in host.images
        assert await client.is_healthy()
        assert "spore_" in await client.metrics()
        assert (await client.drain()).draining
        try:
            with pytest.raises(spore.DrainingError):
                await api.Sandbox.create(machine.info.image)
        finally:
            assert not (await client.drain(draining=False)).draining


async def test_refusals_are_their_own_errors(api: Api, real_image: str) -> None:
    with pytest.raises(spore.NotFoundError):
        await api.Sandbox.create("no-such-image")
    with pytest.raises(spore.InvalidRequestError):
        await api.Sandbox.create(real_image, cpus=999)
    with pytest.raises(spore.InvalidManifestError, match=r"steps\[0\]\.args\.packages\[0\]"):
        await api.build(Image.base("busybox").apt_install("--purge"))
    with pytest.raises(spore.UnknownBaseError):
        await api.build(Image.base("no-such-base"))


async def test_an_image_built_already_is_found_by_its_content(api: Api, real_image: str) -> None:
    async with api.Client() as client:
        image = await client.get_image(real_image)
        assert real_image in (image.id, *image.names)
        assert image.id in [found.id for found in await client.list_images()]
        assert len(image.content_hash) == 64
