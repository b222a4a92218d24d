"""Sandboxes, both halves against a fake daemon."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake import Fake
from halves import Api

import spore
from spore import Image
from spore._core.call import Call
from spore._core.calls import MadeSeveral
from spore._sync_wire import Wire

pytestmark = pytest.mark.anyio


async def test_a_sandbox_is_made_used_and_ended(api: Api, daemon: Fake) -> None:
    async with await api.Sandbox.create("tools", memory_mb=4096) as sandbox:
        assert sandbox.info.memory.granted_mb == 4096
        assert sandbox.info.image == next(iter(daemon.images))
        result = await sandbox.exec("echo $((6*7)); echo oops >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("42\n", "oops\n", 3, False)
        assert sandbox.id in repr(sandbox)
        assert list(daemon.sandboxes) == [sandbox.id]
    assert not daemon.sandboxes
    assert await sandbox.kill() is False


async def test_what_a_sandbox_is_made_with_arrives(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create(
        image="tools",
        memory_mb=2048,
        cpus=2,
        disk_mb=8192,
        env={"A": "b"},
        metadata={"job": "17"},
        timeout_seconds=60,
        network={"allow": ["example.com:443"]},
        exec="printf hi",
    )
    (request,) = daemon.asked("POST", "/v1/sandboxes")
    assert request.json("CreateSandbox") == {
        "image": "tools",
        "memoryMB": 2048,
        "cpus": 2,
        "diskMB": 8192,
        "env": {"A": "b"},
        "metadata": {"job": "17"},
        "timeoutSeconds": 60,
        "network": {"allow": ["example.com:443"]},
        "exec": {"cmd": ["/bin/sh", "-c", "printf hi"], "encoding": "base64"},
    }
    assert sandbox.first_result.stdout == "hi"
    assert sandbox.info.network.policy == {"allow": ["example.com:443"]}
    with pytest.raises(TypeError):
        await api.Sandbox.create("tools", network={"allow": "example.com"})


async def test_an_image_object_is_built_first(api: Api, daemon: Fake) -> None:
    lines: list[str] = []
    image = Image.base("busybox").run_commands("make -j")
    sandbox = await api.Sandbox.create(image=image, on_build_log=lines.append)
    built = daemon.images[sandbox.info.image]
    assert built["contentHash"] == image.content_hash()
    assert "[1/1] done in 1.5 s" in lines
    again = await api.Sandbox.create(image=await api.build(image))
    assert again.info.image == built["id"]


async def test_several_are_made_at_once_and_ended_at_once(api: Api, daemon: Fake) -> None:
    async with await api.Sandbox.create_many(3, "tools", metadata={"a": "b"}) as group:
        assert len(group) == 3
        assert {one.id for one in group} == set(daemon.sandboxes)
        assert (await group[1].exec("true")).ok
        assert group.errors == []
    assert not daemon.sandboxes


async def test_all_or_none_unless_a_part_will_do(api: Api, daemon: Fake) -> None:
    with pytest.raises(spore.InsufficientCapacityError):
        await api.Sandbox.create_many(5, "tools")
    group = await api.Sandbox.create_many(5, image="tools", partial=True)
    assert (len(group), [error.code for error in group.errors]) == (3, ["insufficient_capacity"] * 2)
    assert isinstance(group.errors[0], spore.InsufficientCapacityError)


async def test_commands_are_lines_for_a_shell_or_words(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    assert (await sandbox.exec(["printf", "%s|", "$HOME", "a b"])).stdout == "$HOME|a b|"
    assert (await sandbox.exec("printf '%s|' a  b")).stdout == "a|b|"
    await sandbox.files.mkdir("/sub")
    result = await sandbox.exec(
        "basename $PWD; cat; echo $X", env={"X": "y"}, cwd="/sub", stdin="Grüße\n", timeout_seconds=5
    )
    assert result.stdout == "sub\nGrüße\ny\n"
    assert (await sandbox.exec("cat", stdin=b"\0\xff\n")).stdout_bytes == b"\0\xff\n"
    assert (await sandbox.exec("kill -9 $$")).signal == 9
    late = await sandbox.exec("sleep 60", timeout_seconds=1)
    assert (late.exit_code, late.timed_out) == (124, True)
    for wrong in (["echo", 1], [b"echo"]):
        with pytest.raises(TypeError):
            await sandbox.exec(wrong)
    missing = await sandbox.exec(["/no/such/program"])
    assert (missing.exit_code, missing.stderr) == (127, "spore: /no/such/program: no such file\n")
    with pytest.raises(spore.GuestRefusedError, match="working directory"):
        await sandbox.exec("true", cwd="/nothing")


async def test_a_checked_command_that_fails_says_so_with_its_last_words(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    assert (await sandbox.exec("true", check=True)).ok
    with pytest.raises(spore.CommandFailedError, match=r"`echo why >&2; exit 7` ended with exit code 7: why") as caught:
        await sandbox.exec("echo why >&2; exit 7", check=True)
    assert caught.value.result.exit_code == 7
    with pytest.raises(spore.CommandFailedError, match="ran out of time"):
        await sandbox.exec(["sleep", "60"], check=True, timeout_seconds=1)


async def test_files(api: Api, daemon: Fake, tmp_path: Path) -> None:
    files = (await api.Sandbox.create("tools")).files
    written = await files.write("/a/b c/é&mode=0", b"\0\xff", mode=0o750)
    assert (written.path, written.size_bytes) == ("/a/b c/é&mode=0", 2)
    assert await files.read("/a/b c/é&mode=0") == b"\0\xff"
    await files.write("/a/text", "Grüße", mode="0600")
    assert await files.read_text("/a/text") == "Grüße"
    await files.mkdir("/a/dir", mode=0o700)
    entries = await files.list("/a")
    assert [(entry.name, entry.kind, entry.mode) for entry in entries] == [
        ("b c", "directory", entries[0].mode),
        ("dir", "directory", "0700"),
        ("text", "file", "0600"),
    ]
    await files.remove("/a/text")
    await files.remove("/a", recursive=True)
    assert await files.list("/") == []
    with pytest.raises(spore.GuestRefusedError, match="No such file"):
        await files.read("/a/text")
    await files.write("/x", b"\xff")
    with pytest.raises(UnicodeDecodeError):
        await files.read_text("/x")


async def test_large_files_go_through_disks_and_not_through_memory(api: Api, daemon: Fake, tmp_path: Path) -> None:
    files = (await api.Sandbox.create("tools")).files
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 10000)
    target.write_text("before")
    assert (await files.upload(source, "/x", 0o755)).size_bytes == 2560000
    (request,) = daemon.asked("PUT", daemon.requests[-1].path)
    assert (request.query, request.headers["Content-Length"]) == ({"path": "/x", "mode": "0755"}, "2560000")
    assert await files.download("/x", str(target)) == 2560000
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(spore.GuestRefusedError):
        await files.download("/nothing", target)
    with pytest.raises(FileNotFoundError):
        await files.upload(tmp_path / "nothing", "/y")
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


async def test_forks_are_sandboxes_of_their_own(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    async with await sandbox.fork(2, memory_mb=2048, metadata={"n": "1"}, env={"A": "b"}) as children:
        assert children.paused_us == 900
        assert [child.info.parent for child in children] == [sandbox.id] * 2
        assert children[0].info.origin == "liveFork"
        (request,) = daemon.asked("POST", f"/v1/sandboxes/{sandbox.id}/fork")
        assert request.json("ForkRequest") == {
            "count": 2,
            "memoryMB": 2048,
            "metadata": {"n": "1"},
            "env": {"A": "b"},
        }
    (child,) = await sandbox.fork()
    assert set(daemon.sandboxes) == {sandbox.id, child.id}


async def test_checkpoints_are_kept_and_forked(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    warm = await sandbox.checkpoint(name="warm")
    small = await sandbox.checkpoint("small", finalize_memory_mb=512)
    assert (warm.name, warm.floor_mb, small.floor_mb) == ("warm", 1024, 512)
    with pytest.raises(spore.ConflictError):
        await sandbox.checkpoint("warm")
    assert (await api.Sandbox.from_checkpoint("warm", memory_mb=2048)).info.checkpoint == warm.id
    assert (await api.Sandbox.from_checkpoint(small)).info.checkpoint == small.id
    several = await api.Sandbox.create_many(2, checkpoint=warm)
    assert [one.info.checkpoint for one in several] == [warm.id] * 2
    client = api.Client()
    assert [found.name for found in await client.list_checkpoints()] == ["warm", "small"]
    assert (await client.get_checkpoint(warm.id)).name == "warm"
    await client.delete_checkpoint("warm")
    with pytest.raises(spore.NotFoundError):
        await client.get_checkpoint("warm")
    await client.close()


async def test_a_sandbox_is_changed_and_what_is_known_of_it_with_it(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    assert (await sandbox.resize(4096)).memory.granted_mb == 4096
    assert sandbox.info.memory.granted_mb == 4096
    with pytest.raises(spore.AboveMaximumError):
        await sandbox.resize(99999)
    assert (await sandbox.set_timeout(60)).expires_at == 1700000060
    assert (await sandbox.set_timeout(None)).expires_at is None
    assert (await sandbox.set_idle_timeout(60)).idle_timeout_seconds == 60
    assert (await sandbox.set_idle_timeout(None)).idle_timeout_seconds is None
    assert (await sandbox.set_metadata({"x": "y"})).metadata == {"x": "y"}
    await sandbox.pause()
    assert sandbox.info.state == "paused"
    assert (await sandbox.resume()).state == "running"
    daemon.sandboxes[sandbox.id]["state"] = "paused"
    assert (await sandbox.refresh()).state == "paused"
    assert (await sandbox.usage()).cpu_ms == 7
    assert sandbox.info.usage is None
    assert await sandbox.logs() == "console \ufffd\n"


async def test_sandboxes_are_found_again(api: Api, daemon: Fake) -> None:
    one = await api.Sandbox.create("tools", metadata={"job": "1", "a": "b"})
    two = await api.Sandbox.create("tools", metadata={"job": "2", "a": "b"})
    assert (await api.Sandbox.connect(one.id)).info.metadata == {"job": "1", "a": "b"}
    assert [found.id for found in await api.Sandbox.list()] == [two.id, one.id]
    assert [found.id for found in await api.Sandbox.list(metadata={"job": "1", "a": "b"})] == [one.id]
    with pytest.raises(spore.NotFoundError):
        await api.Sandbox.connect("nothing")


async def test_the_sandbox_of_a_with_is_ended_when_something_fails(api: Api, daemon: Fake) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await api.Sandbox.create("tools"):
            raise ZeroDivisionError
    async with await api.Sandbox.create_many(2, "tools") as group:
        await group[0].kill()
    assert not daemon.sandboxes


# httpcore leaves a socket to the garbage collector when it cannot connect it.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_another_client_can_be_given(api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPORE_SOCKET", "/nowhere")
    with pytest.raises(spore.DaemonUnreachableError, match="/nowhere"):
        await api.Sandbox.create("tools")
    async with api.Client(daemon.socket) as client:
        sandbox = await api.Sandbox.create("tools", client=client)
        assert (await sandbox.exec("true")).ok
        found: Any = await api.Sandbox.list(client=client)
        assert [one.id for one in found] == [sandbox.id]


async def test_what_a_cancelled_task_was_making_is_taken_back(daemon: Fake) -> None:
    client = spore.AsyncClient()
    parent = await spore.AsyncSandbox.create("tools", client=client)
    daemon.requests.clear()

    def heard() -> None:
        while daemon.faults:
            time.sleep(0.01)

    for make in (
        spore.AsyncSandbox.create("tools", client=client),
        spore.AsyncSandbox.create_many(2, "tools", client=client),
        parent.fork(2),
        parent.checkpoint("kept"),
    ):
        daemon.faults.append("hang")
        making = asyncio.create_task(make)
        await asyncio.to_thread(heard)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        (undoing,) = (thread for thread in threading.enumerate() if thread.name == "spore-undo")
        await asyncio.to_thread(undoing.join)
        assert list(daemon.sandboxes) == [parent.id]
        assert not daemon.checkpoints
    posts = [request for request in daemon.requests if request.method == "POST"]
    keys = [request.headers["Idempotency-Key"] for request in posts]
    assert keys == [key for key in dict.fromkeys(keys) for _ in range(2)]
    assert len([request for request in daemon.requests if request.method == "DELETE"]) == 6
    await client.close()


def test_what_was_being_made_when_a_person_pressed_ctrl_c_is_taken_back(daemon: Fake) -> None:
    client = spore.Client()

    def interrupted(call: Call[MadeSeveral]) -> MadeSeveral:
        with closing(Wire(daemon.socket, 5)) as wire:
            made = wire.run(call)
        assert len(made.made) == len(daemon.sandboxes) == 1
        raise KeyboardInterrupt

    client._wire.run = interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        spore.Sandbox.create("tools", client=client)
    (undoing,) = (thread for thread in threading.enumerate() if thread.name == "spore-undo")
    undoing.join()
    assert not daemon.sandboxes
    client.close()


async def test_a_call_that_fails_is_not_made_again_to_be_taken_back(daemon: Fake) -> None:
    with pytest.raises(spore.SporeError):
        await spore.AsyncSandbox.create("no such image")
    assert len(daemon.asked("POST", "/v1/sandboxes")) == 1
