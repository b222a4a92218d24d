"""Clients, both halves against a fake daemon: builds, the host, and what happens to connections."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from fake import Fake
from halves import Api

import spore
from spore import Image
from spore._core import call, place

pytestmark = pytest.mark.anyio


IMAGE = Image.base("busybox").name("mine").run_commands("make")


async def test_a_build_is_told_line_by_line_and_message_by_message(api: Api, daemon: Fake) -> None:
    lines: list[str] = []
    messages: list[spore.BuildMessage] = []
    built = await api.build(IMAGE, on_log=lines.append, on_message=messages.append)
    assert lines == [
        "booting: 4096 MiB",
        '[1/1] run {"commands": ["make"]}',
        "first line",
        "second",
        "the rest",
        "[1/1] done in 1.5 s",
    ]
    kinds = [message.type for message in messages]
    assert kinds == [
        "build",
        "phase",
        "stepStarted",
        "output",
        "output",
        "stepDone",
        "somethingNew",
        "image",
    ]
    assert (messages[0].build_id, messages[5].took_ms, messages[-1].image) == ("b1", 1500, built)
    assert (built.content_hash, built.names) == (IMAGE.content_hash(), ["mine"])


async def test_a_build_is_heard_while_it_goes_on(api: Api, daemon: Fake) -> None:
    image = Image.base("busybox").run_commands("wait for release")

    def heard(line: str) -> None:
        if line == "second":
            daemon.release.set()

    assert (await api.build(image, on_log=heard)).content_hash == image.content_hash()
    assert daemon.release.is_set()


async def test_what_a_build_is_asked_arrives(api: Api, daemon: Fake) -> None:
    await api.build(IMAGE, no_cache=True, step_timeout_seconds=60, network="none")
    async with api.Client() as client:
        await client.build_image({"base": "busybox", "steps": []})
    await api.build(IMAGE, network={"allow": ["example.com:443"]})
    first, second, third = (request.json("BuildRequest") for request in daemon.asked("POST", "/v1/images"))
    assert first == {"manifest": IMAGE.manifest(), "noCache": True, "stepTimeoutSeconds": 60, "network": "none"}
    assert second == {"manifest": {"base": "busybox", "steps": []}}
    assert third["network"] == {"allow": ["example.com:443"]}


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.base("nothing"), spore.UnknownBaseError),
        (Image.base().run_commands("build_failed"), spore.BuildFailedError),
        (Image.base().run_commands("build_oom"), spore.BuildOomError),
        (Image.base().run_commands("build_disk_full"), spore.BuildDiskFullError),
    ],
)
async def test_a_build_that_fails_is_its_own_error(
    api: Api, daemon: Fake, image: Image, kind: type[spore.SporeError]
) -> None:
    lines: list[str] = []
    with pytest.raises(kind) as caught:
        await api.build(image, on_log=lines.append)
    assert type(caught.value) is kind
    if lines:
        assert lines[-1] == "the rest"
        assert caught.value.details == {"step": 0}
        assert isinstance(caught.value, spore.BuildFailedError)


async def test_a_builds_stream_that_breaks_off_is_not_begun_again_in_silence(api: Api, daemon: Fake) -> None:
    with pytest.raises(spore.ConnectionLostError):
        await api.build(Image.base("busybox").run_commands("lose the stream"))
    assert len(daemon.asked("POST", "/v1/images")) == 1


async def test_a_callback_that_fails_ends_the_build(api: Api, daemon: Fake) -> None:
    def heard(line: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await api.build(IMAGE, on_log=heard)


async def test_a_builds_callbacks_may_be_coroutines(daemon: Fake) -> None:
    heard: list[str] = []

    async def hear(line: str) -> None:
        await asyncio.sleep(0)
        heard.append(line)

    await IMAGE.build_async(on_log=hear)
    assert heard[-1] == "[1/1] done in 1.5 s"


async def test_builds_that_go_on_by_themselves(api: Api, daemon: Fake) -> None:
    async with api.Client() as client:
        build = await client.start_build(IMAGE)
        assert daemon.requests[-1].query == {"async": "1"}
        assert (await client.follow_build(build)).builder_memory_mb == 4096
        found = await client.get_build(build)
        assert (found.state, found.image) == ("failed", None)
        assert isinstance(found.error, spore.BuildOomError)
        await client.cancel_build(build)
        assert daemon.requests[-1].path == "/v1/builds/b1"


async def test_images_are_found_by_name_and_id(api: Api, daemon: Fake) -> None:
    async with api.Client() as client:
        (tools,) = await client.list_images()
        assert await client.get_image("tools") == await client.get_image(tools.id) == tools
        assert tools.checkpoints == [spore.ImageCheckpoint(id="c0", floor_mb=1024, cpus=1)]
        await client.delete_image("tools")
        with pytest.raises(spore.NotFoundError):
            await client.delete_image("tools")


async def test_the_host_tells_how_it_is(api: Api, daemon: Fake) -> None:
    async with api.Client() as client:
        host = await client.host()
        assert (host.memory.largest_fit_mb, host.memory.overcommit, host.load) == (9000, 1.0, [0.5, 1.0, 2.0])
        assert host.data_dir == "/data"
        assert (host.pressure, host.versions.guest_kernel, host.draining) == (None, None, False)
        assert (await client.drain()).draining
        assert not (await client.drain(draining=False)).draining
        assert await client.is_healthy()
        assert "spore_sandboxes 1" in await client.metrics()
        assert (await client.openapi())["openapi"] == "3.1.0"


async def test_events_go_on_after_a_lost_connection_and_miss_nothing(
    api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for half in (spore.client, spore.async_client):
        monkeypatch.setattr(half, "RECONNECT_SECONDS", 0.01)
    daemon.events.append([{"id": 7, "timeMs": 1, "type": "sandboxResized", "sandbox": "s", "grantedMB": 2048}])
    daemon.events.append([{"id": 8, "timeMs": 2, "type": "brandNew", "what": "x"}])
    daemon.events.append([{"id": 9, "timeMs": 3, "type": "buildEnded", "build": "b", "error": "build_oom"}])
    daemon.faults.extend(["", "after", "before", ""])
    async with api.Client() as client:
        found = []
        events = client.events(6)
        async for event in events:
            found.append(event)
            if len(found) == 3:
                break
        await events.aclose()
    assert [(event.id, event.type) for event in found] == [(7, "sandboxResized"), (8, "brandNew"), (9, "buildEnded")]
    assert (found[0].sandbox, found[0].granted_mb, found[2].error) == ("s", 2048, "build_oom")
    assert found[1].raw["what"] == "x"
    resumed = [request.headers["Last-Event-ID"] for request in daemon.asked("GET", "/v1/events")]
    assert resumed == ["6", "7", "7", "7", "8"]


async def test_what_is_made_is_made_once_whatever_happens_to_connections(api: Api, daemon: Fake) -> None:
    daemon.faults.extend(["after", "before", "after"])
    sandbox = await api.Sandbox.create("tools")
    assert list(daemon.sandboxes) == [sandbox.id]
    tries = daemon.asked("POST", "/v1/sandboxes")
    assert len(tries) == 4
    assert len({request.headers["Idempotency-Key"] for request in tries}) == 1

    daemon.faults.append("after")
    (child,) = await sandbox.fork()
    daemon.faults.append("after")
    await sandbox.checkpoint("once")
    assert (len(daemon.sandboxes), len(daemon.checkpoints)) == (2, 1)
    daemon.faults.append("after")
    assert await child.kill()
    daemon.faults.append("after")
    assert (await sandbox.resize(2048)).memory.requested_mb == 2048
    daemon.faults.append("after")
    await sandbox.files.write("/x", "y")
    daemon.faults.extend(["before", "after"])
    assert await sandbox.files.read("/x") == b"y"


async def test_other_calls_have_other_keys(api: Api, daemon: Fake) -> None:
    await api.Sandbox.create("tools")
    await api.Sandbox.create("tools")
    keys = [request.headers["Idempotency-Key"] for request in daemon.asked("POST", "/v1/sandboxes")]
    assert len(set(keys)) == len(daemon.sandboxes) == 2
    assert all(1 <= len(key) <= 128 and key.isprintable() for key in keys)


async def test_a_command_is_never_run_twice(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    daemon.faults.append("after")
    with pytest.raises(spore.ConnectionLostError):
        await sandbox.exec("echo x >>ran")
    assert await sandbox.files.read("/ran") == b"x\n"


async def test_what_is_the_same_done_twice_is_tried_again(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    for safe in (sandbox.pause, sandbox.resume, lambda: sandbox.files.mkdir("/d")):
        daemon.faults.append("after")
        asked = len(daemon.requests)
        await safe()
        assert len(daemon.requests) == asked + 2


async def test_a_file_is_not_removed_twice(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    await sandbox.files.write("/x", "y")
    daemon.faults.append("after")
    with pytest.raises(spore.ConnectionLostError):
        await sandbox.files.remove("/x")
    assert await sandbox.files.list("/") == []


async def test_a_file_is_uploaded_again_from_its_beginning(api: Api, daemon: Fake, tmp_path: Any) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100000)
    sandbox = await api.Sandbox.create("tools")
    daemon.faults.extend(["before", "after"])
    assert (await sandbox.files.upload(tmp_path / "x", "/x")).size_bytes == 300000
    assert await sandbox.files.read("/x") == b"abc" * 100000


async def test_it_is_given_up_at_last(api: Api, daemon: Fake) -> None:
    async with api.Client() as client:
        daemon.faults.extend(["before"] * 10)
        with pytest.raises(spore.ConnectionLostError):
            await client.host()
        assert len(daemon.asked("GET", "/v1/host")) == 1 + len(call.PAUSES)
        daemon.faults.clear()
        assert (await client.host()).cpus == 1


async def test_an_error_of_the_daemon_is_not_tried_again(api: Api, daemon: Fake) -> None:
    with pytest.raises(spore.InsufficientCapacityError) as caught:
        await api.Sandbox.create("tools", memory_mb=99999)
    assert caught.value.details == {"largestFitMB": 9000}
    assert caught.value.status == 503
    assert len(daemon.asked("POST", "/v1/sandboxes")) == 1


async def test_a_daemon_that_does_not_answer_is_waited_for_only_so_long(api: Api, daemon: Fake) -> None:
    async with api.Client(timeout=0.2) as client:
        daemon.faults.append("hang")
        with pytest.raises(spore.RequestTimeoutError):
            await client.host()
        assert len(daemon.asked("GET", "/v1/host")) == 1


async def test_what_waits_for_a_guest_is_waited_for(api: Api, daemon: Fake) -> None:
    async with api.Client(timeout=0.2) as client:
        sandbox = await api.Sandbox.create("tools", client=client)
        assert (await sandbox.exec("sleep 0.5; echo x")).stdout == "x\n"


async def test_an_answer_that_is_no_http_is_a_lost_connection(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    daemon.faults.append("garble")
    with pytest.raises(spore.ConnectionLostError):
        await sandbox.exec("true")


# httpcore leaves a socket to the garbage collector when it cannot connect it.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_no_daemon_is_said_to_be_none(api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(daemon.directory / "nothing.sock")
    async with api.Client(path) as client:
        assert client.socket_path == path
        with pytest.raises(spore.DaemonUnreachableError, match=r"nothing\.sock"):
            await client.host()
    async with api.Client("/" + "x" * 200) as client:
        with pytest.raises(spore.DaemonUnreachableError):
            await client.host()


# httpcore leaves a socket to the garbage collector when it cannot connect it.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_daemon_that_is_started_anew_is_found_again(
    api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "PAUSES", (0.05,) * 200)
    async with api.Client() as client:
        await client.host()
        daemon.stop()
        restarted = threading.Timer(0.02, daemon.start)
        restarted.start()
        try:
            assert (await client.host()).cpus == 1
        finally:
            restarted.join()


def test_where_the_daemon_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPORE_SOCKET", "/tmp/a")
    assert (place.socket_path(None), place.socket_path("/b")) == ("/tmp/a", "/b")
    monkeypatch.setenv("SPORE_SOCKET", "")
    assert place.socket_path(None) == "/run/spore/spore.sock"
    monkeypatch.delenv("SPORE_SOCKET")
    assert spore.Client().socket_path == "/run/spore/spore.sock"


async def test_proxies_are_not_asked(api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with api.Client() as client:
        assert await client.is_healthy()


def test_one_client_is_shared_by_what_is_given_none(daemon: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = spore.Client.shared()
    assert spore.Client.shared() is shared
    assert spore.Sandbox.create("tools")._client is shared
    monkeypatch.setenv("SPORE_SOCKET", "/other")
    assert spore.Client.shared() is not shared
    monkeypatch.setenv("SPORE_SOCKET", daemon.socket)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert spore.Client.shared() is not shared


def test_an_asynchronous_client_is_shared_within_an_event_loop(daemon: Fake) -> None:
    async def work() -> spore.AsyncClient:
        async with await spore.AsyncSandbox.create("tools") as sandbox:
            assert sandbox._client is spore.AsyncClient.shared()
            await asyncio.gather(*(sandbox.exec("true") for _ in range(8)))
            return sandbox._client

    first, second = asyncio.run(work()), asyncio.run(work())
    assert first is not second
    with pytest.raises(RuntimeError):
        spore.AsyncClient.shared()


def test_threads_share_a_client(daemon: Fake) -> None:
    sandbox = spore.Sandbox.create("tools")
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda number=number: found.append(sandbox.exec(f"echo {number}").stdout))
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"{number}\n" for number in range(16))


async def test_cancelling_a_call_hangs_up(daemon: Fake) -> None:
    sandbox = await spore.AsyncSandbox.create("tools")
    daemon.faults.append("hang")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(sandbox.exec("true"), 0.1)
    daemon.release.set()
    assert (await sandbox.exec("echo on")).stdout == "on\n"
